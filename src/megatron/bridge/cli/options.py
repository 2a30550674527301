"""Arguments and options that several commands share."""

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}


def dtype_name(name: str | None) -> str | None:
    """The name of a dtype that a command can be given.

    Raises:
        typer.BadParameter: another name.
    """
    if name is not None and name not in _DTYPES:
        raise typer.BadParameter(f"{name!r} is not one of fp32, bf16 and fp16")
    return name


def torch_dtype(name: str | None) -> "torch.dtype | None":
    """The dtype of a `--dtype` option, `None` if it was not given."""
    if name is None:
        return None
    import torch

    dtype: Any = getattr(torch, _DTYPES[name])
    return dtype  # type: ignore[no-any-return]


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def num_bytes(text: str) -> int:
    """Bytes of a size such as `1GB`, `512MiB` or `1000000`.

    Raises:
        typer.BadParameter: another form, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", text.strip().upper())
    size = int(float(match[1]) * _UNITS.get(match[2], 0)) if match else 0
    if size <= 0:
        raise typer.BadParameter(f"{text!r} is not a size such as 1GB or 512MiB")
    return size


def part(text: str) -> tuple[int, int]:
    """Index and count of a part such as `0/8`.

    Raises:
        typer.BadParameter: another form, or an index outside the count.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise typer.BadParameter(f"{text!r} is not a part such as 0/8, the first of eight, or 7/8, the last")
    return int(match[1]), int(match[2])


_PARALLEL = "Ranks"
_RESOURCES = "Resources"
_COMMON = "Output"

HFModel = Annotated[str, typer.Argument(metavar="HF", help="Hugging Face model: a folder or a hub id.")]
ConvertDtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE", callback=dtype_name, help="Convert the weights: fp32, bf16 or fp16. Default: as stored."
    ),
]
ComputeDtype = Annotated[
    str,
    typer.Option(metavar="DTYPE", callback=dtype_name, help="Dtype of weights and computation: fp32, bf16 or fp16."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow Python code in the model's folder to run.")
]
Revision = Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a hub id.")]
Memory = Annotated[
    int | None,
    typer.Option(
        metavar="SIZE",
        parser=num_bytes,
        help="Memory for buffers, such as 1GB. Default: 256MiB, whatever the model's size.",
        rich_help_panel=_RESOURCES,
    ),
]
Threads = Annotated[
    int, typer.Option(min=1, metavar="N", help="Files written at the same time.", rich_help_panel=_RESOURCES)
]
Part = Annotated[
    Any,  # index and count; typer takes a tuple for an option of two values
    typer.Option(
        metavar="I/N",
        parser=part,
        help="Write only the I-th of N shares (from 0). The last process to finish publishes the folder.",
        rich_help_panel=_RESOURCES,
    ),
]
TensorParallel = Annotated[int, typer.Option("--tp", min=1, help="Tensor-parallel size.", rich_help_panel=_PARALLEL)]
PipelineParallel = Annotated[
    int, typer.Option("--pp", min=1, help="Pipeline-parallel size.", rich_help_panel=_PARALLEL)
]
ExpertParallel = Annotated[int, typer.Option("--ep", min=1, help="Expert-parallel size.", rich_help_panel=_PARALLEL)]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.", rich_help_panel=_COMMON)
]
# Read from the arguments by `main`, which handles the errors; here so that every command accepts and documents it.
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings.", rich_help_panel=_COMMON)]
