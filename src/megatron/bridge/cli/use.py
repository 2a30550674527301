"""The commands that use models: inspect, generate and models."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from megatron.bridge.cli import options, output, ranks
from megatron.bridge.errors import BridgeError
from megatron.bridge.transport.parallel_sizes import ParallelLayout


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's folder, its config.json, or a hub id.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with pictures here.")] = None,
    revision: options.Revision = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what a model is, before any of it is loaded.

    The report lists its parts and parameters, what is quantised, and how it can
    be split over ranks. It is read from the config and the headers of the weight
    files; for a hub id, no weights are downloaded. It ends with the next step:
    the command that imports the model, or what has to be written first.

    Example: [bold]megatron-bridge inspect Qwen/Qwen3-0.6B --html qwen3.html[/bold]
    """
    from megatron.bridge.discovery.light_imports import use_light_imports

    use_light_imports()
    from megatron.bridge.discovery import inspect_model

    report = inspect_model(model, revision=revision)
    if html is not None:
        from megatron.bridge.discovery.pages.html_page import html_page

        try:
            html.write_text(html_page(report), encoding="utf-8")
        except OSError as error:
            raise BridgeError(
                f"{html}: the page cannot be written here: {error.strerror}. Give another path."
            ) from error
    if as_json:
        output.print_json(report.to_dict())
        return
    from megatron.bridge.discovery.pages.text_page import text_page

    output.console(soft_wrap=False).print(text_page(report))
    if html is not None:
        output.console().print(f"\nWritten: {html}", markup=False)


def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hugging Face folder, hub id or Megatron checkpoint.")],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The text to answer or to continue.", show_default=False)],
    chat: options.Chat = None,
    system: options.System = None,
    max_new_tokens: Annotated[
        int, typer.Option(parser=options.at_least(1), metavar="N", help="Stop after N tokens.")
    ] = 256,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = 0,
    dtype: options.ConvertDtype = None,
    hf: Annotated[
        str | None, typer.Option(metavar="HF", help="Take the tokenizer from here.\n\nDefault: MODEL.")
    ] = None,
    tp: options.TensorParallel = 1,
    pp: options.PipelineParallel = 1,
    trust_remote_code: options.TrustRemoteCode = False,
    revision: options.Revision = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Generate text with a Megatron-Core model, printed as it comes.

    Starts tp * pp ranks on this machine, unless torchrun did.

    Example: [bold]megatron-bridge generate ./qwen3-megatron --prompt "Hello"[/bold]
    """
    from megatron.bridge.inference import SamplingParams, generate_text
    from megatron.bridge.inference.open_model import open_model

    params = SamplingParams(max_new_tokens, temperature, top_k, top_p, seed)
    layout = ParallelLayout(tp, pp)
    ranks.join(context.obj, layout, model, revision)
    pieces = []
    console = output.console(quiet=as_json)
    output.hide_loading_bars()
    chunks, tokenizer, eos_token_ids = open_model(
        model,
        layout,
        options.torch_dtype(dtype),
        tokenizer_from=hf,
        trust_remote_code=trust_remote_code,
        revision=revision,
    )
    start = time.monotonic()
    for piece in generate_text(chunks, tokenizer, prompt, params, chat, system, eos_token_ids):
        pieces.append(piece)
        console.out(piece, end="", highlight=False)
        console.file.flush()
    console.out("")
    if as_json:
        values = {"model": model, "prompt": prompt, "text": "".join(pieces), **vars(layout)}
        output.print_json({**values, "seconds": round(time.monotonic() - start, 3)})


def models(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """List the supported architectures, and what is proven of each.

    Proven on a layout: the logits are those of transformers, and the checkpoint
    comes back bit for bit. tp, pp, ep and etp are the sizes of tensor, pipeline,
    expert and expert-tensor parallelism; sp is sequence parallelism.

    Example: [bold]megatron-bridge models[/bold]
    """
    from rich import box
    from rich.table import Table

    from megatron.bridge.models.conversion.registered import registered_bridges
    from megatron.bridge.models.proven import support

    proven = support()
    rows: list[dict[str, Any]] = []
    table = Table("Architecture", "model_type", "proven on", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, entry in sorted(registered_bridges().items()):
        proofs = proven.get(name)
        rows.append(
            {
                "architecture": name,
                "bridge": entry.bridge_class.__name__,
                "model_type": entry.model_type,
                "proven_layouts": list(proofs.layouts) if proofs else [],
                "max_diff": proofs.max_diff if proofs else None,
                "reference": (proofs.reference or name) if proofs else None,
            }
        )
        layouts = ", ".join(proofs.layouts if proofs else ()) or "not proven"
        against = f" (against {proofs.reference})" if proofs and proofs.reference not in (None, name) else ""
        table.add_row(name, entry.model_type or "", layouts + against)
    if as_json:
        output.print_json({"models": rows})
    output.console(quiet=as_json).print(table)
