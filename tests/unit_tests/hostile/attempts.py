"""What every case here must come to: an error of this package that names the file, or a result that is right."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megatron.bridge.errors import BridgeError
from megatron.bridge.verification.bits import same_bits


@contextmanager
def no_hang(seconds: float = 20) -> Iterator[None]:
    """Raises `TimeoutError`, which no case may come to, if the block takes longer."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(read: Callable[[], Any], culprit: str | Path) -> BridgeError | None:
    """The error of `read`, or None if it succeeded. Other exceptions, and hangs, are failures of the test.

    Args:
        culprit: what the message must name.
    """
    try:
        with no_hang():
            read()
    except BridgeError as error:
        assert str(culprit) in str(error), f"{culprit} is not named: {error}"
        assert len(str(error)) < 5000
        return error
    return None


def must_fail(read: Callable[[], Any], culprit: str | Path) -> None:
    error = attempt(read, culprit)
    assert error is not None, "accepted"


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors have the same names, dtypes, shapes and bits."""
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)
