"""Arguments and options that several commands share."""

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


def _dtype_name(name: str | None) -> str | None:
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


_PARALLEL = "Ranks"
_COMMON = "Output"

HFModel = Annotated[str, typer.Argument(metavar="HF", help="Hugging Face model: a folder or a hub id.")]
ConvertDtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE", callback=_dtype_name, help="Convert the weights: fp32, bf16 or fp16. Default: as stored."
    ),
]
ComputeDtype = Annotated[
    str,
    typer.Option(metavar="DTYPE", callback=_dtype_name, help="Dtype of weights and computation: fp32, bf16 or fp16."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow Python code in the model's folder to run.")
]
Revision = Annotated[str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a hub id.")]
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
