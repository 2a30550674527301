"""The report as a single HTML file: without scripts, loading nothing, and with all text from the model escaped."""

from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files

from megatron.bridge.discovery import formatting
from megatron.bridge.discovery.families import UnknownField
from megatron.bridge.discovery.pages import pictures
from megatron.bridge.discovery.report import ModelReport


def html_page(report: ModelReport) -> str:
    """A self-contained page with pictures."""
    style = files("megatron.bridge.discovery.pages").joinpath("page.css").read_text(encoding="utf-8")
    title = escape(report.name)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{''.join(_sections(report))}</main>\n</body>\n</html>\n"
    )


def _sections(report: ModelReport) -> Iterator[str]:
    yield _header(report)
    yield _section("Layer map", pictures.layer_map(report.layers))
    counted = "Counted from the config alone." if report.parameters.is_expected else ""
    yield _section("Where the parameters are", pictures.share_bars(report.parameters.by_category), counted)
    note = "Stored bytes by dtype; the scales of a quantised tensor count under that tensor's dtype."
    yield _section("Dtype map", pictures.dtype_map(report.parameters.bytes_by_dtype), note)
    yield _section("What it is", _pairs(formatting.summary(report)))
    yield _section("Quantisation", _quantization(report))
    yield _section("Support", _support(report))
    yield _section("Parallel layouts", _layouts(report))
    yield _section("Config", _facts(report))
    decisions = _pairs((item.question, item.answer) for item in report.decisions)
    yield _section("What to do", decisions)


def _section(title: str, body: str, note: str = "") -> str:
    if not body:
        return ""
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}{words}\n</section>\n"


def _header(report: ModelReport) -> str:
    parameters = report.parameters
    tiles = [("kind", report.kind)]
    if parameters.total:
        tiles.append(("parameters", formatting.count(parameters.total)))
        if parameters.active != parameters.total:
            tiles.append(("active", formatting.count(parameters.active)))
        if parameters.is_expected:
            tiles.append(("weights", "none"))
        else:
            files = f"in {parameters.num_files} file{'s' if parameters.num_files > 1 else ''}"
            tiles.append((files, formatting.size(parameters.stored_bytes)))
    if report.layers:
        tiles.append(("layers", str(len(report.layers))))
    cards = "".join(f"<div><b>{escape(number)}</b><span>{escape(name)}</span></div>" for name, number in tiles)
    problems = "".join(f'<p class="warning">{escape(problem)}</p>' for problem in report.problems)
    architecture = ", ".join(report.classes.architectures) or "no architecture"
    return (
        f"<header>\n<h1>{escape(report.name)}</h1>\n<p>{escape(architecture)} · {escape(report.source)}</p>\n"
        f'<div class="tiles">{cards}</div>\n{problems}'
        f'<p class="next"><b>Next step</b> {escape(report.next_step)}</p>\n</header>\n'
    )


def _quantization(report: ModelReport) -> str:
    texts = (*report.quantization.disagreements, *report.quantization.problems)
    return _pairs(formatting.quantization(report)) + _warnings(texts)


def _support(report: ModelReport) -> str:
    support = report.support
    rows = [*formatting.bridge(support), *([formatting.tensors(support)] if report.parameters.num_tensors else ())]
    rows += [("left out", f"{number}x {reason}") for reason, number in support.dropped.items()]
    fields = [(*_field(item), "no family: probably a new block") for item in support.unknown_fields]
    fields += [(*_field(item), ", ".join(item.known_to[:3])) for item in support.foreign_fields]
    fields += [(item.name, repr(item.found), "", f"must be {item.expected!r}") for item in support.refused]
    fields += [(*_field(item), "transformers' class, for the encoder") for item in support.encoder_fields]
    fields += [(*_field(item), "not read by transformers") for item in support.not_read]
    tensors = [(name, str(number)) for name, number in formatting.by_pattern(support.unmatched).items()]
    return (
        _warnings([support.reason] if support.reason else [])
        + _pairs(rows)
        + _table(("config field", "value", "level", "known to"), fields)
        + _table(("tensor without a rule", "number"), tensors)
        + _table((f"tensors that {support.bridge} has, but this model does not",), [(name,) for name in support.absent])
    )


def _field(item: UnknownField) -> tuple[str, str, str]:
    return item.name, formatting.value(item.value), item.level


def _layouts(report: ModelReport) -> str:
    layouts = report.layouts
    if layouts is None:
        return ""
    table = [
        (
            *map(str, (row.num_ranks, row.tp, formatting.stages(row), row.ep, row.etp)),
            *map(formatting.size, (row.min_bytes, row.max_bytes)),
        )
        for row in formatting.chosen_layouts(layouts)
    ]
    names = ("ranks", "TP", "PP (first..last stage)", "EP", "ETP", "bytes, emptiest rank", "bytes, fullest rank")
    note = formatting.layouts_caption(layouts)
    shown = f'{_table(names, table)}<p class="note">{escape(note)}</p>' if table else ""
    return _pairs(formatting.parallel_sizes(layouts)) + shown


def _facts(report: ModelReport) -> str:
    rows = [
        (subject, fact.name, formatting.value(fact.value), fact.level)
        for subject, facts in report.facts.items()
        for fact in facts
    ]
    return _table(("subject", "field", "value", "level"), rows)


def _pairs(rows: Iterable[tuple[str, str]]) -> str:
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows if text)
    return f"<dl>{entries}</dl>" if entries else ""


def _table(names: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>' if body else ""
    )


def _warnings(texts: Iterable[str]) -> str:
    return "".join(f'<p class="warning">{escape(text)}</p>' for text in texts)
