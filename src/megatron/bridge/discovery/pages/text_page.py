"""The report as a page of text, for terminals with at least 80 columns."""

from collections.abc import Callable, Iterable, Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from megatron.bridge.discovery import formatting
from megatron.bridge.discovery.report import ModelReport

_BAR = 16
_MAX_LISTED = 12


def text_page(report: ModelReport) -> RenderableType:
    """The whole report, for `rich`'s console."""
    return Group(*_blocks(report))


def _blocks(report: ModelReport) -> Iterator[RenderableType]:
    yield from _title(report)
    yield from _section("What it is", _pairs(formatting.summary(report)))
    if report.facts:
        yield from _section("Config", _facts(report))
    if report.parameters.by_category:
        yield from _section("Where the parameters are", _parameters(report))
    quantization = _quantization(report)
    if quantization.row_count:
        yield from _section("Quantisation", quantization)
    yield from _section("Support", _support(report))
    if report.layouts is not None:
        yield from _section("Parallel layouts", _layouts(report))
    yield from _section("What to do", _decisions(report))
    yield Text.assemble("\n", ("Next step: ", "bold green"), (report.next_step, "bold"))


def _section(title: str, body: RenderableType) -> Iterator[RenderableType]:
    yield Text(f"\n{title}", style="bold cyan")
    yield Padding(body, (0, 0, 0, 2))


def _title(report: ModelReport) -> Iterator[RenderableType]:
    yield Text.assemble((report.name, "bold"), f"  ({report.source})")
    parameters = report.parameters
    parts = [report.kind, ", ".join(report.classes.architectures) or "no architecture"]
    if parameters.total:
        count = f"{formatting.count(parameters.total)} parameters"
        if parameters.active != parameters.total:
            count += f", {formatting.count(parameters.active)} active"
        files = f"{parameters.num_files} file{'s' if parameters.num_files > 1 else ''}"
        stored = f"{formatting.size(parameters.stored_bytes)} in {files}"
        parts += [count, "counted from the config" if parameters.is_expected else stored]
    yield Text(" · ".join(parts))
    for problem in report.problems:
        yield Text(f"! {problem}", style="yellow")


def _grid(*widths: int | None) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for width in widths:
        grid.add_column(min_width=width, overflow="fold")
    return grid


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    grid = _grid(16, None)
    for name, text in rows:
        grid.add_row(Text(name, style="dim"), Text(text))
    return grid


def _facts(report: ModelReport) -> Table:
    grid = _grid(16, None)
    for subject, facts in report.facts.items():
        levels: dict[str, list[str]] = {}
        for fact in facts:
            levels.setdefault(fact.level, []).append(f"{fact.name} {formatting.value(fact.value)}")
        for index, (level, values) in enumerate(levels.items()):
            text = Text.assemble(", ".join(values), (f"  [{level}]", "dim"))
            grid.add_row(Text("" if index else subject, style="dim"), text)
    return grid


def _parameters(report: ModelReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("", "parameters", "share", "", "stored as"):
        table.add_column(name, justify="right" if name in ("parameters", "share") else "left")
    whole = sum(report.parameters.by_category.values()) or 1
    for name, number in report.parameters.by_category.items():
        dtypes = report.parameters.bytes_by_dtype.get(name, {})
        stored = ", ".join(f"{dtype} {formatting.size(nbytes)}" for dtype, nbytes in dtypes.items())
        bar = "█" * round(number / whole * _BAR) or "▏"
        table.add_row(name, formatting.count(number), f"{number / whole:.1%}", Text(bar, style="cyan"), Text(stored))
    return table


def _quantization(report: ModelReport) -> Table:
    grid = _pairs(formatting.quantization(report))
    for text in (*report.quantization.disagreements, *report.quantization.problems[:_MAX_LISTED]):
        grid.add_row("", Text(text, style="yellow"))
    return grid


def _support(report: ModelReport) -> Table:
    support, grid = report.support, _grid(16, None)

    def row(label: str, text: str, style: str = "") -> None:
        grid.add_row(Text(label, style="dim"), Text(text, style=style))

    if support.reason:
        row("", support.reason, "yellow")
    for label, text in formatting.bridge(support):
        row(label, text)
    for field in support.unknown_fields:
        words = "no family knows it, " + ("but transformers does" if field.in_transformers else "nor does transformers")
        row("unknown field", f"{field.name} = {formatting.value(field.value)}  [{field.level}] {words}", "yellow")
    if support.unknown_fields:
        row("", f"probably a new block: see {report.classes.modeling_file or 'the modeling file'}", "yellow")
    for field in support.foreign_fields[:_MAX_LISTED]:
        others = ", ".join(field.known_to[:3]) + (", ..." if len(field.known_to) > 3 else "")
        row("foreign field", f"{field.name} = {formatting.value(field.value)}  [{field.level}] known to {others}")
    if support.encoder_fields:
        names = ", ".join(field.name for field in support.encoder_fields)
        row("encoder fields", f"{names}  [top level] read by transformers' class")
    for field in support.not_read[:_MAX_LISTED]:
        value = formatting.value(field.value)
        row("not read", f"{field.name} = {value}  [{field.level}] transformers does not read it")
    for item in support.refused:
        row("refused value", f"{item.name} = {item.found!r}: must be {item.expected!r}", "yellow")
    _tensor_rows(report, row)
    return grid


def _tensor_rows(report: ModelReport, row: Callable[..., None]) -> None:
    support = report.support
    if not report.parameters.num_tensors:
        row("tensors", "no weights were read; the names come from the index" if support.num_matched else "none")
    if not (support.num_matched or support.unmatched):
        return
    row(*formatting.tensors(support))
    patterns = formatting.by_pattern(support.unmatched)
    for name, number in list(patterns.items())[:_MAX_LISTED]:
        row("without a rule", f"{name}{f' ({number} tensors)' if number > 1 else ''}", "yellow")
    if len(patterns) > _MAX_LISTED:
        row("", f"... and {len(patterns) - _MAX_LISTED} more (--json lists them all)")
    for reason, number in support.dropped.items():
        row("left out", f"{number}x {reason}")
    if not support.is_supported and support.absent:
        more = len(support.absent) - _MAX_LISTED
        listed = ", ".join(support.absent[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
        row("absent", f"tensors that {support.bridge} has: {listed}")


def _layouts(report: ModelReport) -> RenderableType:
    layouts = report.layouts
    assert layouts is not None
    grid = _pairs(formatting.parallel_sizes(layouts))
    chosen = formatting.chosen_layouts(layouts)
    if not chosen:
        return grid
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("ranks", "TP", "PP", "EP", "ETP", "parameter bytes per rank"):
        table.add_column(name, justify="right")
    for row in chosen:
        span = formatting.size(row.max_bytes)
        if row.min_bytes < row.max_bytes * 0.99:
            span = f"{formatting.size(row.min_bytes)} to {span}"
        table.add_row(*map(str, (row.num_ranks, row.tp, formatting.stages(row), row.ep, row.etp)), span)
    return Group(grid, Text(formatting.layouts_caption(layouts), style="dim"), table)


def _decisions(report: ModelReport) -> Table:
    grid = _grid(None, None)
    for decision in report.decisions:
        grid.add_row(Text(decision.question, style="dim"), Text(decision.answer))
    return grid
