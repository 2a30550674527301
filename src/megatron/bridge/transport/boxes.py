"""Boxes: rectangular parts of tensors, given by a start and a stop per axis."""

from math import prod

Shape = tuple[int, ...]
Box = tuple[tuple[int, int], ...]  # (start, stop) per axis


def whole(shape: Shape) -> Box:
    """The box that covers a tensor of `shape`: `((0, 2), (0, 3))` for `(2, 3)`."""
    return tuple((0, size) for size in shape)


def num_elements(box: Box) -> int:
    """The number of elements in a box."""
    return prod([stop - start for start, stop in box])


def slices(box: Box) -> tuple[slice, ...]:
    """The index that takes `box` out of a tensor."""
    return tuple([slice(start, stop) for start, stop in box])


def shifted(box: Box, origin: Box) -> Box:
    """`box` in the coordinates of a tensor that begins where `origin` does: 5 to 7 is 1 to 3 in 4 to 9."""
    return tuple([(start - begin, stop - begin) for (start, stop), (begin, _) in zip(box, origin, strict=True)])


def common_box(a: Box, b: Box) -> Box | None:
    """The overlap of two boxes of the same tensor, or `None`: of `((0, 4),)` and `((2, 6),)` it is `((2, 4),)`."""
    common = []
    for (p, q), (r, s) in zip(a, b, strict=True):
        start, stop = p if p > r else r, q if q < s else s
        if start >= stop:
            return None
        common.append((start, stop))
    return tuple(common)
