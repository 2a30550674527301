"""The bitwise comparison of two tensors: NaNs are equal to themselves, and 0.0 is not equal to -0.0."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class BitDifference(NamedTuple):
    """Where two tensors of the same shape and dtype differ.

    Attributes:
        num_elements: how many elements differ.
        first: index of the first of them in the flattened tensors.
        first_bits: its bits in each of the two, in hexadecimal.
    """

    num_elements: int
    first: int
    first_bits: tuple[str, str]


def bit_difference(a: "Tensor", b: "Tensor") -> BitDifference | None:
    """Compares two tensors on the CPU, of the same shape and dtype; `None` if they are the same bit for bit."""
    import torch

    itemsize = a.itemsize
    a, b = as_bytes(a), as_bytes(b)
    if torch.equal(a, b):
        return None
    bytes_a, bytes_b = a.numpy(), b.numpy()
    differs = (bytes_a != bytes_b).reshape(-1, itemsize).any(axis=1)
    first = int(differs.argmax())
    place = slice(first * itemsize, (first + 1) * itemsize)
    bits_a, bits_b = (f"0x{part[place].tobytes()[::-1].hex()}" for part in (bytes_a, bytes_b))
    return BitDifference(int(differs.sum()), first, (bits_a, bits_b))


def same_bits(a: "Tensor", b: "Tensor") -> bool:
    """Whether two tensors have the same dtype, shape and bits."""
    return a.dtype == b.dtype and a.shape == b.shape and bit_difference(a, b) is None


def as_bytes(tensor: "Tensor") -> "Tensor":
    """The bytes of a tensor's elements in order, one-dimensional; a view if the tensor is contiguous."""
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
