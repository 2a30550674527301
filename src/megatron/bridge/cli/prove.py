"""The commands that prove: verify, roundtrip and compare."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron.bridge.cli import options, output, ranks
from megatron.bridge.transport.parallel_sizes import ParallelLayout

if TYPE_CHECKING:
    from rich.console import Console

    from megatron.bridge.verification import Difference

_MAX_LINES = 20


def verify(
    a: Annotated[str, typer.Argument(metavar="A", help="Hugging Face folder, hub id or Megatron checkpoint.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare it with, of either kind.")],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Prove that two checkpoints hold the same weights, bit for bit.

    They may be of different kinds, and saved from different parallel layouts.
    Memory does not grow with the model. Exit code 1 if they differ.

    Example: [bold]megatron-bridge verify ./qwen3-megatron ./qwen3-hf[/bold]
    """
    from megatron.bridge.verification import verify_checkpoints

    start = time.monotonic()
    result = verify_checkpoints(a, b, show_progress=output.show_progress(as_json))
    seconds = time.monotonic() - start
    if as_json:
        differences = [{"name": row.name, "what": row.kind, "detail": row.detail} for row in result.differences]
        values = {"a": a, "b": b, "passed": result.equal, **vars(result), "differences": differences}
        output.print_json({**values, "seconds": round(seconds, 3)})
    console = output.console(quiet=as_json)
    verdict = "bit for bit the same" if result.equal else f"{len(result.differences)} different"
    counts = f"{result.num_tensors} tensors compared, {output.size(result.num_bytes)}"
    console.print(f"{counts}: {output.mark(result.equal)} {verdict}")
    _print_some(console, _grouped(result.differences))
    for name, reason in result.ignored.items():
        console.print(f"  not compared: {name}: {reason}", markup=False)
    console.print(f"  {seconds:.1f} s")
    output.finish(result.equal)


def roundtrip(
    context: typer.Context,
    hf: options.HFModel,
    out: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write the export here, and compare its files.")
    ] = None,
    tp: options.TensorParallel = 1,
    pp: options.PipelineParallel = 1,
    ep: options.ExpertParallel = 1,
    trust_remote_code: options.TrustRemoteCode = False,
    revision: options.Revision = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Load a model, export it again, and compare bit for bit.

    The weights go through a model in Megatron-Core, sharded over the ranks.
    Starts tp * pp * ep ranks on this machine, unless torchrun did.
    Exit code 1 if a tensor differs.

    Example: [bold]megatron-bridge roundtrip Qwen/Qwen3-0.6B --tp 2[/bold]
    """
    layout = ParallelLayout(tp, pp, ep)
    ranks.join(context.obj, layout, hf, revision)
    from megatron.bridge import verification

    start = time.monotonic()
    result = verification.roundtrip(
        hf,
        layout,
        out=out,
        trust_remote_code=trust_remote_code,
        revision=revision,
        show_progress=output.show_progress(as_json),
    )
    seconds = time.monotonic() - start
    if as_json:
        output.print_json(_proof(hf, layout, result.passes, seconds) | vars(result))
    console = output.console(quiet=as_json)
    verdict = "bit for bit the same" if result.passes else f"{len(result.mismatches)} mismatches"
    counts = f"{result.num_tensors} tensors, {output.size(result.num_bytes)}"
    console.print(_heading("roundtrip", hf, layout))
    console.print(f"  {counts}: {output.mark(result.passes)} {verdict}")
    if result.num_dropped:
        console.print(f"  {result.num_dropped} tensors dropped, as the family declares")
    _print_some(console, result.mismatches)
    console.print(f"  {seconds:.1f} s")
    output.finish(result.passes)


def compare(
    context: typer.Context,
    hf: options.HFModel,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Text to compare on.\n\nDefault: a sentence.")
    ] = None,
    seq_length: Annotated[
        int | None, typer.Option(parser=options.at_least(1), metavar="N", help="Compare on N random tokens instead.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(parser=options.at_least(0), metavar="N", help="Also compare N greedy new tokens.")
    ] = 0,
    tolerance: options.Tolerance = None,
    dtype: options.ComputeDtype = "fp32",
    tp: options.TensorParallel = 1,
    pp: options.PipelineParallel = 1,
    ep: options.ExpertParallel = 1,
    trust_remote_code: options.TrustRemoteCode = False,
    revision: options.Revision = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare Megatron-Core's logits with those of transformers.

    Starts tp * pp * ep ranks on this machine, unless torchrun did.
    Exit code 1 if a difference exceeds the tolerance: by default 1e-5, or twice
    what transformers' own rounding makes of this model.

    Example: [bold]megatron-bridge compare Qwen/Qwen3-0.6B --tp 2[/bold]
    """
    if prompt is not None and seq_length is not None:
        raise typer.BadParameter("give either --prompt or --seq-length")
    layout = ParallelLayout(tp, pp, ep)
    ranks.join(context.obj, layout, hf, revision)
    from megatron.bridge import verification

    start = time.monotonic()
    output.hide_loading_bars()
    result = verification.compare_logits(
        hf,
        layout,
        prompt=prompt,
        seq_length=seq_length,
        dtype=options.torch_dtype(dtype),
        num_new_tokens=max_new_tokens,
        tolerance=tolerance,
        trust_remote_code=trust_remote_code,
        revision=revision,
    )
    passed, seconds = result.passes, time.monotonic() - start
    if as_json:
        values = {"dtype": str(options.torch_dtype(dtype)).removeprefix("torch.")}
        output.print_json(_proof(hf, layout, passed, seconds) | values | vars(result))
    console = output.console(quiet=as_json)
    console.print(_heading("compare", f"{hf} in {dtype}", layout))
    console.print(
        f"  {output.mark(result.max_abs_diff <= result.tolerance)} logits differ by at most "
        f"[bold]{result.max_abs_diff:.2e}[/] (tolerance {result.tolerance:.1e}, largest logit {result.scale:.3g})\n"
        f"    most likely token the same at {result.num_same_argmax} of {result.num_tokens} positions"
    )
    if result.num_new_tokens:
        mark = output.mark(result.num_same_new_tokens == result.num_new_tokens)
        console.print(f"  {mark} greedy tokens the same: {result.num_same_new_tokens} of {result.num_new_tokens}")
    console.print(f"  {seconds:.1f} s")
    output.finish(passed)


def _proof(hf: str, layout: ParallelLayout, passed: bool, seconds: float) -> dict[str, Any]:
    return {"model": hf, "passed": passed, **vars(layout), "seconds": round(seconds, 3)}


def _heading(command: str, subject: str, layout: ParallelLayout) -> str:
    from rich.markup import escape

    return f"[bold]{command}[/] {escape(subject)} at {layout}"


def _grouped(differences: "Sequence[Difference]") -> list[str]:
    """A line for each difference, or for those of one kind in tensors that only differ by layer and expert."""
    from megatron.bridge.discovery.formatting import alike_names, in_one_name

    by_kind: dict[str, dict[str, Difference]] = {}
    for difference in differences:
        by_kind.setdefault(difference.kind, {})[difference.name] = difference
    lines = []
    for kind, named in by_kind.items():
        for names in alike_names(named):
            first = named[names[0]]
            if len(names) == 1:
                lines.append(str(first))
                continue
            same = all(named[name].detail == first.detail for name in names)
            detail = first.detail if same else f"the first of them: {first.detail}"
            lines.append(f"{in_one_name(names)} ({len(names)} tensors): {kind}{': ' if detail else ''}{detail}")
    return lines


def _print_some(console: "Console", lines: Sequence[str]) -> None:
    for line in lines[:_MAX_LINES]:
        console.print(f"    {line}", markup=False)
    if len(lines) > _MAX_LINES:
        console.print(f"    ... and {len(lines) - _MAX_LINES} more (--json lists all)")
