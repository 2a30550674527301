"""What the commands do: each calls one function of the library and shows its result.

Heavy imports are inside the functions.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from megatron.bridge.cli import output, ranks
from megatron.bridge.cli.options import torch_dtype
from megatron.bridge.errors import BridgeError, CheckpointError

Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class ModelChoice:
    """Which model a command works on: folder, hub id or checkpoint, and how it may be loaded."""

    name: str
    trust_remote_code: bool = False
    revision: str | None = None
    tokenizer_from: str | None = None


class OutputForm(NamedTuple):
    """What exported weights are stored as."""

    dtype: str | None
    quantization: str | None


class Opened(NamedTuple):
    """A model for generation: its Megatron chunks, tokenizer and end tokens."""

    model: list[Any]
    tokenizer: Any
    eos_token_ids: Sequence[int]


@contextmanager
def _process_groups() -> Iterator[None]:
    """Ends `torch.distributed` after the block: ranks that just exit make it complain."""
    from megatron.bridge.transport import process_groups

    try:
        yield
    finally:
        process_groups.destroy()


def _say(json: bool) -> Any:
    """The console for results: stdout, or nowhere when stdout is for JSON."""
    console = output.console()
    console.quiet = console.quiet or json
    return console


# Inspection


def inspect(name: str, html: Path | None, revision: str | None, json: bool) -> None:
    """Shows what a model is, and writes the page with pictures if one is wanted."""
    from megatron.bridge.discovery.light_imports import use_light_imports

    use_light_imports()
    from megatron.bridge.discovery import inspect_model

    report = inspect_model(name, revision=revision)
    if html is not None:
        from megatron.bridge.discovery.html_page import html_page

        try:
            html.write_text(html_page(report), encoding="utf-8")
        except OSError as error:
            raise BridgeError(
                f"{html}: the page cannot be written here: {error.strerror}. Give another path."
            ) from error
    if json:
        output.print_json(report.to_dict())
        return
    from megatron.bridge.discovery.text_page import text_page

    output.console(soft_wrap=False).print(text_page(report))
    if html is not None:
        output.console().print(f"\nWritten: {html}", markup=False)


# Conversion


def resources(memory: int | None, threads: int, part: tuple[int, int] | None) -> Any:
    """The `Resources` that the options of a command describe."""
    from megatron.bridge.models.conversion.resources import Resources

    found = Resources(num_threads=threads, part=part)
    return found if memory is None else replace(found, memory=memory)


def import_hf(model: ModelChoice, out: Path, dtype: str | None, resources: Any, force: bool, json: bool) -> None:
    """HF folder or hub id -> Megatron checkpoint."""
    from megatron.bridge import AutoBridge

    start = time.monotonic()
    with _process_groups():
        bridge = AutoBridge.from_hf_pretrained(
            model.name, trust_remote_code=model.trust_remote_code, revision=model.revision
        )
        bridge.write_megatron_checkpoint(
            out, torch_dtype(dtype), show_progress=output.show_progress(json), resources=resources, force=force
        )
    _report_conversion("Imported", model.name, out, out.glob("iter_*/*.distcp"), time.monotonic() - start, json)


def dequantize(model: ModelChoice, out: Path, dtype: str | None, resources: Any, json: bool) -> None:
    """Quantised HF folder or hub id -> plain HF folder."""
    from megatron.bridge import dequantize_checkpoint

    start = time.monotonic()
    with _process_groups():
        weights = dequantize_checkpoint(
            model.name,
            out,
            revision=model.revision,
            dtype=torch_dtype(dtype),
            resources=resources,
            show_progress=output.show_progress(json),
        )
    seconds = time.monotonic() - start
    formats = "; ".join(f"{count} x {name}" for name, count in weights.found.formats.items())
    _report_conversion("De-quantised", model.name, out, out.glob("*.safetensors"), seconds, json, formats=formats)


def export(
    checkpoint: Path,
    out: Path,
    hf: str | None,
    form: OutputForm,
    trust_remote_code: bool,
    resources: Any,
    json: bool,
) -> None:
    """Megatron checkpoint -> HF folder."""
    start = time.monotonic()
    with _process_groups():
        bridge, note = _bridge_of(checkpoint, hf, trust_remote_code)
        if note:
            output.console(stderr=True).print(f"note: {note}", markup=False)
        bridge.export_ckpt(
            checkpoint,
            out,
            show_progress=output.show_progress(json),
            torch_dtype=torch_dtype(form.dtype),
            resources=resources,
            quantization=form.quantization,
        )
    source = str(bridge.hf_pretrained.model_name_or_path)
    seconds = time.monotonic() - start
    _report_conversion("Exported", str(checkpoint), out, out.glob("*.safetensors"), seconds, json, hf=source)


def _bridge_of(checkpoint: Path, hf: str | None, trust_remote_code: bool) -> tuple[Any, str | None]:
    """A bridge for a Megatron checkpoint, and what the user should know about where its config comes from."""
    from megatron.bridge import AutoBridge
    from megatron.bridge.transport.checkpoint_folder import TOKENIZER_FOLDER, iteration_folder

    folder = iteration_folder(checkpoint)
    if hf is not None:
        return AutoBridge.from_hf_pretrained(hf, trust_remote_code=trust_remote_code), None
    source = AutoBridge.get_hf_model_id_from_checkpoint(folder)
    problem = "it does not say which Hugging Face model it came from"
    if source is not None:
        try:
            return AutoBridge.from_hf_pretrained(source, trust_remote_code=trust_remote_code), None
        except BridgeError as error:
            problem = f"its source {source} cannot be used ({error})"
    if (folder / TOKENIZER_FOLDER / "config.json").is_file():
        bridge = AutoBridge.from_hf_pretrained(folder / TOKENIZER_FOLDER, trust_remote_code=trust_remote_code)
        return bridge, (
            f"{problem}. Config and tokenizer come from the checkpoint itself, and the files are cut anew; "
            "pass --hf to use a model's."
        )
    raise CheckpointError(f"{checkpoint}: {problem}, and holds no copy of its config; pass --hf")


def _report_conversion(
    verb: str, source: str, out: Path, files: Iterator[Path], seconds: float, json: bool, **more: str
) -> None:
    num_bytes = sum(file.stat().st_size for file in files)
    if json:
        values = {"source": source, "out": str(out), "complete": out.exists(), "num_bytes": num_bytes}
        values |= {"seconds": round(seconds, 3), **more, "peak_memory_bytes": output.peak_memory()}
        output.print_json(values)
    if not out.exists():
        _say(json).print(f"This part is done. {out} appears when the last part is.", markup=False)
        return
    from rich.markup import escape

    details = f"{output.size(num_bytes)} in {seconds:.1f} s, peak memory {output.size(output.peak_memory())}"
    _say(json).print(f"{verb} [bold]{escape(source)}[/] to [bold]{escape(str(out))}[/]\n  {details}")


# Proofs


def verify(a: str, b: str, json: bool) -> bool:
    """Whether two checkpoints hold the same weights bit for bit."""
    from megatron.bridge.verification import verify_checkpoints

    start = time.monotonic()
    with _process_groups():
        found = verify_checkpoints(a, b, show_progress=output.show_progress(json))
    seconds = time.monotonic() - start
    if json:
        values = {"a": a, "b": b, "passed": found.equal, "num_tensors": found.num_tensors}
        values |= {
            "num_bytes": found.num_bytes,
            "differences": [{"name": row.name, "what": row.kind, "detail": row.detail} for row in found.differences],
        }
        output.print_json({**values, "ignored": found.ignored, "seconds": round(seconds, 3)})
    console = _say(json)
    verdict = "bit for bit the same" if found.equal else f"{len(found.differences)} different"
    counts = f"{found.num_tensors} tensors compared, {output.size(found.num_bytes)}"
    console.print(f"{counts}: {_mark(found.equal)} {verdict}")
    _print_some(console, [str(difference) for difference in found.differences])
    for name, reason in found.ignored.items():
        console.print(f"  not compared: {name}: {reason}", markup=False)
    console.print(f"  {seconds:.1f} s")
    return found.equal


def _print_some(console: Any, lines: Sequence[str]) -> None:
    for line in lines[:20]:
        console.print(f"    {line}", markup=False)
    if len(lines) > 20:
        console.print(f"    ... and {len(lines) - 20} more (--json lists all)")


def roundtrip(argv: Sequence[str], model: ModelChoice, sizes: Sizes, out: Path | None, json: bool) -> bool:
    """HF -> live Megatron model -> HF; whether every tensor came back bit for bit."""
    layout = ranks.join(argv, sizes)
    from megatron.bridge import verification

    start = time.monotonic()
    with _process_groups():
        result = verification.roundtrip(
            model.name,
            layout,
            out=out,
            trust_remote_code=model.trust_remote_code,
            revision=model.revision,
            show_progress=output.show_progress(json),
        )
    seconds = time.monotonic() - start
    if json:
        values = {
            "num_tensors": result.num_tensors,
            "num_bytes": result.num_bytes,
            "num_dropped": result.num_dropped,
            "mismatches": list(result.mismatches),
        }
        output.print_json(_proof(model.name, layout, result.passes, seconds) | values)
    console = _say(json)
    verdict = "bit for bit the same" if result.passes else f"{len(result.mismatches)} mismatches"
    console.print(_heading("roundtrip", model.name, layout))
    console.print(f"  {result.num_tensors} tensors, {output.size(result.num_bytes)}: {_mark(result.passes)} {verdict}")
    if result.num_dropped:
        console.print(f"  {result.num_dropped} tensors dropped, as the family declares")
    _print_some(console, result.mismatches)
    console.print(f"  {seconds:.1f} s")
    return result.passes


def compare(
    argv: Sequence[str],
    model: ModelChoice,
    sizes: Sizes,
    texts: tuple[str | None, int | None, int],
    tolerance: float,
    dtype: str,
    json: bool,
) -> bool:
    """Logits of transformers against Megatron-Core's; whether they agree within the tolerance."""
    layout = ranks.join(argv, sizes)
    from megatron.bridge import verification

    prompt, seq_length, num_new_tokens = texts
    start = time.monotonic()
    with _process_groups():
        output.hide_loading_bars()
        result = verification.compare_logits(
            model.name,
            layout,
            prompt=prompt,
            seq_length=seq_length,
            dtype=torch_dtype(dtype),
            num_new_tokens=num_new_tokens,
            trust_remote_code=model.trust_remote_code,
            revision=model.revision,
        )
    passed, seconds = result.passes(tolerance), time.monotonic() - start
    if json:
        values = {"tolerance": tolerance, "dtype": str(torch_dtype(dtype)).removeprefix("torch."), **vars(result)}
        output.print_json(_proof(model.name, layout, passed, seconds) | values)
    console = _say(json)
    console.print(_heading("compare", f"{model.name} in {dtype}", layout))
    for line in comparison_lines(result, tolerance):
        console.print(f"  {line}")
    console.print(f"  {seconds:.1f} s")
    return passed


def comparison_lines(result: Any, tolerance: float) -> list[str]:
    """A `LogitComparison` in words."""
    close = result.max_abs_diff <= tolerance
    lines = [
        f"{_mark(close)} logits differ by at most [bold]{result.max_abs_diff:.2e}[/] "
        f"(tolerance {tolerance:.0e}, largest logit {result.scale:.3g})",
        f"  most likely token the same at {result.num_same_argmax} of {result.num_tokens} positions",
    ]
    if result.num_new_tokens:
        same = result.num_same_new_tokens == result.num_new_tokens
        lines.append(f"{_mark(same)} greedy tokens the same: {result.num_same_new_tokens} of {result.num_new_tokens}")
    return lines


def _proof(name: str, layout: Any, passed: bool, seconds: float) -> dict[str, Any]:
    return {"model": name, "passed": passed, **vars(layout), "seconds": round(seconds, 3)}


def _heading(what: str, subject: str, layout: Any) -> str:
    from rich.markup import escape

    return f"[bold]{what}[/] {escape(subject)} at {layout}"


def _mark(passed: bool) -> str:
    return "[green]✓[/]" if passed else "[red]✗[/]"


# Generation


def generate(
    argv: Sequence[str],
    choice: ModelChoice,
    sizes: Sizes,
    texts: tuple[str, bool | None, str | None],
    sampling: Mapping[str, Any],
    dtype: str | None,
    json: bool,
) -> None:
    """Prints the continuation of a prompt, or the answer to it, as it comes."""
    from megatron.bridge.inference import SamplingParams, generate_text

    params = SamplingParams(**sampling)
    layout = ranks.join(argv, sizes)
    prompt, chat, system = texts
    pieces = []
    console = _say(json)
    with _process_groups():
        output.hide_loading_bars()
        opened = open_model(choice, layout, dtype)
        start = time.monotonic()
        for piece in generate_text(
            opened.model, opened.tokenizer, prompt, params, chat, system, eos_token_ids=opened.eos_token_ids
        ):
            pieces.append(piece)
            console.out(piece, end="", highlight=False)
            console.file.flush()
    console.out("")
    if json:
        text = "".join(pieces)
        values = {"model": choice.name, "prompt": prompt, "text": text, **vars(layout)}
        output.print_json({**values, "seconds": round(time.monotonic() - start, 3)})


def open_model(choice: ModelChoice, layout: Any, dtype: str | None) -> Opened:
    """Builds the Megatron model of an HF model or of a Megatron checkpoint, on this run's ranks (collective)."""
    from megatron.bridge import AutoBridge, runtime

    runtime.enter()
    from megatron.bridge.inference import eos_token_ids
    from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM
    from megatron.bridge.models.transformer.decoder_config import set_dtype
    from megatron.bridge.training import model_load_save
    from megatron.bridge.transport import process_groups
    from megatron.bridge.transport.checkpoint_folder import TOKENIZER_FOLDER, iteration_folder
    from megatron.bridge.verification import provider_for

    process_groups.initialize(tp=layout.tp, pp=layout.pp, ep=layout.ep)
    remote_code = choice.trust_remote_code
    tokenizer_from = choice.tokenizer_from
    if is_megatron_checkpoint(choice.name):
        folder = iteration_folder(choice.name)
        hf = PreTrainedCausalLM.from_pretrained(
            tokenizer_from or folder / TOKENIZER_FOLDER, trust_remote_code=remote_code
        )
        provider, _ = model_load_save.load_model_config(folder)
        if (compute_dtype := torch_dtype(dtype)) is not None:
            set_dtype(provider, compute_dtype)
        model = model_load_save.load_megatron_model(folder, layout.provider_fields, provider)
        return Opened(model, hf.tokenizer, eos_token_ids(hf))
    bridge = AutoBridge.from_hf_pretrained(choice.name, trust_remote_code=remote_code, revision=choice.revision)
    hf = bridge.hf_pretrained
    if tokenizer_from is not None:
        hf = PreTrainedCausalLM.from_pretrained(tokenizer_from, trust_remote_code=remote_code)
    tokenizer = hf.tokenizer  # an error here comes before the work
    provider = provider_for(bridge, layout, torch_dtype(dtype))
    return Opened(provider.provide_distributed_model(wrap_with_ddp=False), tokenizer, eos_token_ids(hf))


def is_megatron_checkpoint(name: str) -> bool:
    """Whether a name is a folder with a Megatron checkpoint, rather than an HF folder or a hub id.

    Raises:
        CheckpointError: it is a folder with neither.
    """
    from megatron.bridge.transport.checkpoint_folder import iteration_folder

    folder = Path(name)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return False
    try:
        iteration_folder(folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name}: neither a Hugging Face model (no config.json) nor a Megatron checkpoint ({error})"
        ) from error
    return True


# The table of models, and the quickstart


def models(json: bool) -> None:
    """Lists the registered architectures, with the layouts on which each is proven."""
    from rich import box
    from rich.table import Table

    from megatron.bridge.models.conversion.registered import registered_bridges
    from megatron.bridge.models.proven import support

    proven = support()
    rows: list[dict[str, Any]] = []
    for name, entry in sorted(registered_bridges().items()):
        row: dict[str, Any] = {
            "architecture": name,
            "bridge": entry.bridge_class.__name__,
            "model_type": entry.model_type,
        }
        found = proven.get(name)
        row |= {"proven_layouts": [], "max_diff": None, "reference": None}
        if found:
            reference = found.reference or name
            row |= {"proven_layouts": list(found.layouts), "max_diff": found.max_diff, "reference": reference}
        rows.append(row)
    if json:
        output.print_json({"models": rows})
    table = Table("Architecture", "model_type", "proven on", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        layouts = ", ".join(row["proven_layouts"]) or "not proven"
        against = "" if row["reference"] in (None, row["architecture"]) else f" (against {row['reference']})"
        table.add_row(row["architecture"], row["model_type"] or "", layouts + against)
    _say(json).print(table)


def quickstart(workdir: Path | None, json: bool) -> bool:
    """Runs the quickstart and shows what was proven; whether everything was."""
    from megatron.bridge import quickstart

    return quickstart.run(workdir, json=json)
