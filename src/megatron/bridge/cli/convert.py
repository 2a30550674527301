"""The commands that convert: import, export and dequantize."""

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from megatron.bridge.cli import options, output
from megatron.bridge.models.conversion.resources import Resources

OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.", show_default=False)]


def import_(
    hf: options.HFModel,
    out: OutFolder,
    dtype: options.ConvertDtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    revision: options.Revision = None,
    memory: options.Memory = None,
    threads: options.Threads = 2,
    part: options.Part = None,
    force: Annotated[
        bool, typer.Option("--force", metavar="", help="Convert numbers that do not look like weights.")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Convert a Hugging Face model into a Megatron checkpoint.

    The weights stream from file to file, so the model may be larger than memory.
    The checkpoint (torch_dist) loads at any tensor-, pipeline- and
    expert-parallel size. A run that was interrupted continues where it stopped.

    Example: [bold]megatron-bridge import Qwen/Qwen3-0.6B ./qwen3-megatron[/bold]
    """
    from megatron.bridge import AutoBridge

    start = time.monotonic()
    AutoBridge.import_ckpt(
        hf,
        out,
        torch_dtype=options.torch_dtype(dtype),
        show_progress=output.show_progress(as_json),
        resources=Resources(memory or Resources.memory, threads, part),
        force=force,
        trust_remote_code=trust_remote_code,
        revision=revision,
    )
    _report("Imported", hf, out, "iter_*/*.distcp", start, as_json, None if dtype or revision else (out, hf))


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Megatron checkpoint, or one of its iterations.")],
    out: OutFolder,
    hf: Annotated[
        str | None,
        typer.Option(
            metavar="HF", help="Take config, tokenizer and file names here.\n\nDefault: the model it was imported from."
        ),
    ] = None,
    dtype: options.ConvertDtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    memory: options.Memory = None,
    threads: options.Threads = 2,
    part: options.Part = None,
    quantization: Annotated[
        str | None,
        typer.Option(
            metavar="FORM",
            help="Quantise linear layers to this form.\n\nfp8: in blocks of 128 x 128.\n\nmxfp4: fused experts.\n\n"
            "source: as they are in the source.",
        ),
    ] = None,
    strict: options.Strict = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Convert a Megatron checkpoint into a Hugging Face folder.

    The checkpoint may have been saved from any parallel layout.

    Example: [bold]megatron-bridge export ./qwen3-megatron ./qwen3-hf[/bold]
    """
    from megatron.bridge import AutoBridge
    from megatron.bridge.training.checkpoint_origin import origin_of

    start = time.monotonic()
    if hf is not None:
        bridge = AutoBridge.from_auto_config(checkpoint, hf, trust_remote_code)
    else:
        bridge, problem = origin_of(checkpoint, trust_remote_code)
        if problem is not None:
            note = (
                f"note: {problem}. Config and tokenizer come from the checkpoint itself, and the files are cut "
                "anew; pass --hf to use a model's."
            )
            output.console(stderr=True).print(note, markup=False)
    bridge.export_ckpt(
        checkpoint,
        out,
        show_progress=output.show_progress(as_json),
        strict=strict,
        torch_dtype=options.torch_dtype(dtype),
        resources=Resources(memory or Resources.memory, threads, part),
        quantization=quantization,
    )
    source = bridge.hf_pretrained.model_name_or_path
    compare = None if dtype or quantization else (checkpoint, out)
    _report("Exported", str(checkpoint), out, "*.safetensors", start, as_json, compare, hf=source)


def dequantize(
    hf: options.HFModel,
    out: OutFolder,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            callback=options.dtype_name,
            help="De-quantise to fp32, bf16 or fp16.\n\nDefault: the dtype in config.json.",
        ),
    ] = None,
    revision: options.Revision = None,
    memory: options.Memory = None,
    threads: options.Threads = 2,
    part: options.Part = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write a quantised Hugging Face model as a plain one.

    Conversion does not need this, but other tools may. What is quantised is seen
    from the tensors themselves: FP8, NVFP4, MXFP4, INT8, GPTQ, AWQ and others.

    Example: [bold]megatron-bridge dequantize deepseek-ai/DeepSeek-V3 ./deepseek-v3-bf16[/bold]
    """
    from megatron.bridge import dequantize_checkpoint

    start = time.monotonic()
    weights = dequantize_checkpoint(
        hf,
        out,
        revision=revision,
        dtype=options.torch_dtype(dtype),
        resources=Resources(memory or Resources.memory, threads, part),
        show_progress=output.show_progress(as_json),
    )
    formats = "; ".join(f"{count} x {name}" for name, count in weights.found.formats.items())
    _report(
        "De-quantised",
        hf,
        out,
        "*.safetensors",
        start,
        as_json,
        None if dtype or revision else (hf, out),
        formats=formats,
    )


def _report(
    verb: str,
    source: str,
    out: Path,
    files: str,
    start: float,
    as_json: bool,
    compare: tuple[str | Path, str | Path] | None,
    **more: str,
) -> None:
    """Says what was written, and the commands that one may run next.

    Args:
        files: the pattern of the files in `out` that hold weights.
        start: when the work began.
        compare: what must hold the same weights, bit for bit; `None` if the conversion changed them.
    """
    from rich.markup import escape

    seconds = time.monotonic() - start
    num_bytes = sum(file.stat().st_size for file in out.glob(files))
    commands = _next_commands(out, compare) if out.exists() else []
    if as_json:
        values = {"source": source, "out": str(out), "complete": out.exists(), "num_bytes": num_bytes}
        values |= {"seconds": round(seconds, 3), **more, "peak_memory_bytes": output.peak_memory(), "next": commands}
        output.print_json(values)
    console = output.console(quiet=as_json)
    if not out.exists():
        console.print(f"This part is done. {out} appears when the last part is.", markup=False)
        return
    details = f"{output.size(num_bytes)} in {seconds:.1f} s, peak memory {output.size(output.peak_memory())}"
    console.print(f"{verb} [bold]{escape(source)}[/] to [bold]{escape(str(out))}[/]\n  {details}")
    for command in commands:
        console.print(f"Next: [bold]{escape(command)}[/]")


def _next_commands(out: Path, compare: tuple[str | Path, str | Path] | None) -> list[str]:
    """A proof of what was written, if there can be one, and a use of it."""
    from megatron.bridge.models.hf_pretrained.artifacts import has_tokenizer_files

    kept = list(out.glob("iter_*/tokenizer"))  # what a Megatron checkpoint has of its source
    if any(has_tokenizer_files(folder) for folder in (out, *kept)):
        use = ["generate", str(out), "--prompt", "Hello"]
    else:
        use = ["export", str(out), f"{out}-hf"] if kept else ["inspect", str(out)]
    commands = [["verify", *map(str, compare)], use] if compare else [use]
    return [shlex.join(["megatron-bridge", *words]) for words in commands]
