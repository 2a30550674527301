"""Arguments and options that several commands share."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    import torch

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def dtype_name(name: str | None) -> str | None:
    """The name of a dtype that commands take: a short one, or torch's.

    Raises:
        typer.BadParameter: another name.
    """
    if name is not None and name not in (*_DTYPES, *_DTYPES.values()):
        raise typer.BadParameter(f"{name!r} is not one of fp32, bf16 and fp16")
    return name


def torch_dtype(name: str | None) -> "torch.dtype | None":
    """The dtype of a `--dtype` option; `None` if it was not given."""
    if name is None:
        return None
    import torch

    dtype: torch.dtype = getattr(torch, _DTYPES.get(name, name))
    return dtype


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def num_bytes(text: str) -> int:
    """The bytes of a size such as `1GB`, `512MiB` or `1000000`.

    Raises:
        typer.BadParameter: another form, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", text.strip().upper())
    size = int(float(match[1]) * _UNITS.get(match[2], 0)) if match else 0
    if size <= 0:
        raise typer.BadParameter(f"{text!r} is not a size such as 1GB or 512MiB")
    return size


class PartOfWork(NamedTuple):
    """Which of `num_parts` equal parts of the work a process does; the first has number 0."""

    number: int
    num_parts: int


def part(text: str) -> PartOfWork:
    """A part such as `0/8`.

    Raises:
        typer.BadParameter: another form, or an index outside the count.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise typer.BadParameter(f"{text!r} is not a part such as 0/8, the first of eight, or 7/8, the last")
    return PartOfWork(int(match[1]), int(match[2]))


def at_least(smallest: int) -> Callable[[str], int]:
    """A parser of whole numbers from `smallest`. Unlike typer's `min`, it leaves the column of the help narrow."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = smallest - 1
        if number < smallest:
            raise typer.BadParameter(f"{text!r} is not a whole number from {smallest}")
        return number

    return parse


def not_negative(number: float | None) -> float | None:
    """The number, if there is one.

    Raises:
        typer.BadParameter: it is negative, or no number.
    """
    if number is not None and not number >= 0:
        raise typer.BadParameter(f"{number} is not a number from 0")
    return number


_PARALLEL = "Ranks"
_RESOURCES = "Resources"
_SOURCE = "Source"
_CHAT = "Chat"
_SAMPLING = "Sampling"
_COMMON = "Output"

# Each sentence of a help text fits in a line of a terminal with 80 columns. An empty line makes it begin a new one.
HFModel = Annotated[str, typer.Argument(metavar="HF", help="Hugging Face model: a folder or a hub id.")]
ConvertDtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE", callback=dtype_name, help="Convert weights to fp32, bf16 or fp16.\n\nDefault: as stored."
    ),
]
ComputeDtype = Annotated[str, typer.Option(metavar="DTYPE", callback=dtype_name, help="Compute in fp32, bf16 or fp16.")]
Tolerance = Annotated[
    float | None,
    typer.Option(
        metavar="X", callback=not_negative, help="Largest difference of logits allowed.\n\nDefault: measured."
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", metavar="", help="Let Python code in the model's folder run.", rich_help_panel=_SOURCE
    ),
]
Revision = Annotated[
    str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a hub id.", rich_help_panel=_SOURCE)
]
Memory = Annotated[
    int | None,
    typer.Option(
        metavar="SIZE",
        parser=num_bytes,
        help="Memory for buffers, such as 1GB.\n\nDefault: 256MiB, however large the model is.",
        rich_help_panel=_RESOURCES,
    ),
]
Threads = Annotated[
    int,
    typer.Option(parser=at_least(1), metavar="N", help="Files to write at the same time.", rich_help_panel=_RESOURCES),
]
Part = Annotated[
    PartOfWork | None,
    typer.Option(
        metavar="I/N",
        parser=part,
        help="Write only part I of N, counting from 0.\n\nThe process that finishes last publishes the folder.",
        rich_help_panel=_RESOURCES,
    ),
]
TensorParallel = Annotated[
    int, typer.Option("--tp", parser=at_least(1), metavar="N", help="Tensor-parallel size.", rich_help_panel=_PARALLEL)
]
PipelineParallel = Annotated[
    int,
    typer.Option("--pp", parser=at_least(1), metavar="N", help="Pipeline-parallel size.", rich_help_panel=_PARALLEL),
]
ExpertParallel = Annotated[
    int, typer.Option("--ep", parser=at_least(1), metavar="N", help="Expert-parallel size.", rich_help_panel=_PARALLEL)
]
Strict = Annotated[
    bool | None,
    typer.Option(
        "--strict/--no-strict",
        metavar="",
        help="Refuse, or list, what differs from HF.\n\nDefault: config fields may, tensors may not.",
        show_default=False,
        rich_help_panel="Differences",
    ),
]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        metavar="",
        help="Use the tokenizer's chat template.\n\nDefault: if there is one.",
        rich_help_panel=_CHAT,
    ),
]
System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="System message for the chat template.", rich_help_panel=_CHAT)
]
Temperature = Annotated[
    float, typer.Option(metavar="T", help="0 takes the most likely token.", rich_help_panel=_SAMPLING)
]
TopK = Annotated[
    int, typer.Option(metavar="K", help="Sample from the top K tokens; 0 for all.", rich_help_panel=_SAMPLING)
]
TopP = Annotated[
    float,
    typer.Option(metavar="P", help="Sample from top tokens that sum to probability P.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of the sampling.", rich_help_panel=_SAMPLING)]
Json = Annotated[
    bool,
    typer.Option(
        "--json", metavar="", help="Print one JSON object on stdout and nothing else.", rich_help_panel=_COMMON
    ),
]
# `main`, which handles the errors, reads it from the arguments; here every command accepts and documents it.
Debug = Annotated[
    bool, typer.Option("--debug", metavar="", help="Show tracebacks and warnings.", rich_help_panel=_COMMON)
]
