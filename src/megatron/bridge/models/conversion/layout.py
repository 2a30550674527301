"""Layout: which element of which Hugging Face tensor goes where in one Megatron weight.

A layout is data: a tuple of `Piece`s, each of which says that a box of the whole (unsharded) Megatron weight equals a
box of one HF tensor, perhaps with its axes permuted. Pieces never overlap, and together they cover the weight, so one
description serves both directions and every cut: building the weight, taking it apart, reading only the slice that a
rank holds, counting bytes, and proving that nothing is lost. Nothing here knows of process groups, files or configs.

Letters in shapes: H hidden, D head dimension, A attention heads, G query groups, F feed-forward, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from megatron.bridge.models.hf_pretrained.number_range import check_range
from megatron.bridge.transport.boxes import Box, Shape, common_box, num_elements, shifted, slices, whole

if TYPE_CHECKING:
    from torch import Tensor


class Sliceable(Protocol):
    """A tensor, or something that gives tensors when it is sliced, such as the view of a quantised one."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def itemsize(self) -> float: ...
    def __getitem__(self, index: tuple[slice | int, ...], /) -> "Tensor": ...


@dataclass(frozen=True, slots=True)
class Piece:
    """`megatron[megatron_box] == hf[hf_index].permute(permute) + offset`.

    Attributes:
        role: which HF tensor of the mapping ("weight", "q", "gate", ...); `None` marks padding, which is zero in
            Megatron and absent from HF.
        hf_index: for each HF axis, a slice with explicit start, stop and step, or an int for an axis that the Megatron
            weight lacks (the expert axis of a fused expert tensor).
        megatron_box: the box in the whole Megatron weight.
        permute: Megatron axis `i` is axis `permute[i]` of the indexed HF tensor; `None` keeps the order.
        offset: the number added to every element.
    """

    role: str | None
    hf_index: tuple[slice | int, ...]
    megatron_box: Box
    permute: tuple[int, ...] | None = None
    offset: float = 0.0

    @property
    def num_elements(self) -> int:
        """The number of elements in the box."""
        return num_elements(self.megatron_box)


@dataclass(frozen=True, slots=True)
class Layout:
    """The pieces of one Megatron weight, and the shape that each HF tensor must therefore have, by role."""

    pieces: tuple[Piece, ...]
    hf_shapes: Mapping[str, Shape]


def clip(piece: Piece, box: Box) -> Piece | None:
    """The part of `piece` inside `box`, both in coordinates of the whole weight; `None` if they do not overlap."""
    common = common_box(piece.megatron_box, box)
    if common is None:
        return None
    if common == piece.megatron_box:
        return piece
    index = list(piece.hf_index)
    kept_axes = [axis for axis, entry in enumerate(index) if isinstance(entry, slice)]
    for axis, ((start, stop), (begin, _)) in enumerate(zip(common, piece.megatron_box, strict=True)):
        if piece.role is None:
            break
        hf_axis = kept_axes[piece.permute[axis] if piece.permute else axis]
        entry = index[hf_axis]
        assert isinstance(entry, slice)
        first = entry.start + (start - begin) * entry.step
        index[hf_axis] = slice(first, first + (stop - start - 1) * entry.step + 1, entry.step)
    return Piece(piece.role, tuple(index), common, piece.permute, piece.offset)


def clip_hf_rows(piece: Piece, start: int, stop: int) -> Piece | None:
    """The part of `piece` in rows `start` to `stop` of its HF tensor, or `None`. Padding lies in no row."""
    if piece.role is None:
        return None
    if not piece.hf_index:  # a scalar is its own row
        return piece
    rows = piece.hf_index[0]
    if isinstance(rows, int):
        return piece if start <= rows < stop else None
    first = max(0, -(-(start - rows.start) // rows.step))
    last = min(len(range(rows.start, rows.stop, rows.step)), -(-(stop - rows.start) // rows.step))
    if first >= last:
        return None
    axis = piece.permute.index(0) if piece.permute else 0
    box = list(piece.megatron_box)
    begin = box[axis][0]
    box[axis] = (begin + first, begin + last)
    return clip(piece, tuple(box))


def shift_hf_rows(piece: Piece, origin: int) -> Piece:
    """The same piece, in a tensor that holds the rows of the HF tensor from `origin` on."""
    if not piece.hf_index:
        return piece
    rows = piece.hf_index[0]
    moved = rows - origin if isinstance(rows, int) else slice(rows.start - origin, rows.stop - origin, rows.step)
    return Piece(piece.role, (moved, *piece.hf_index[1:]), piece.megatron_box, piece.permute, piece.offset)


def take(tensor: Sliceable, piece: Piece) -> "Tensor":
    """The view of an HF tensor that `piece` describes, with Megatron's order of axes. A tensor is never copied."""
    view = tensor[piece.hf_index]
    return view.permute(piece.permute) if piece.permute else view


def plus(tensor: "Tensor", offset: float) -> "Tensor":
    """The sum in float64, so that it is rounded only where it is copied to; the tensor itself if the offset is 0."""
    return tensor.double() + offset if offset else tensor


def assemble(
    layout: Layout,
    hf_tensors: Mapping[str, Sliceable],
    out: "Tensor",
    box: Box | None = None,
    names: Mapping[str, str] | None = None,
) -> None:
    """Writes the Megatron weight, or the part of it in `box`, into `out`, in the dtype of `out`.

    Args:
        layout: the layout of the whole weight.
        hf_tensors: the whole HF tensors, by role.
        out: a tensor of the shape of `box`.
        box: default: the whole weight.
        names: of the HF tensors by role, for errors; without them, numbers outside of the range of `out` become Inf.

    Raises:
        CheckpointError: numbers are outside of the range of the dtype of `out`.
    """
    box = whole(tuple(out.shape)) if box is None else box
    for piece in layout.pieces:
        part = clip(piece, box)
        if part is None:
            continue
        target = out[slices(shifted(part.megatron_box, box))]
        if part.role is None:
            target.zero_()
        else:
            source = plus(take(hf_tensors[part.role], part), part.offset)
            target.copy_(source)
            if names is not None:
                check_range(target, source, names[part.role])


def disassemble(layout: Layout, part: "Tensor", box: Box, hf_tensors: Mapping[str, "Tensor"]) -> dict[str, int]:
    """The inverse of `assemble`: writes `part`, which is the `box` of the weight, into the HF tensors.

    Returns:
        The number of elements written, by role.
    """
    written: dict[str, int] = {}
    for piece in layout.pieces:
        common = clip(piece, box)
        if common is None or common.role is None:
            continue
        source = part[slices(shifted(common.megatron_box, box))]
        take(hf_tensors[common.role], common).copy_(plus(source, -common.offset))
        written[common.role] = written.get(common.role, 0) + common.num_elements
    return written


def fuse(layout: Layout, hf_tensors: Mapping[str, "Tensor"]) -> "Tensor":
    """The whole Megatron weight, in the dtype of the first HF tensor.

    Example:
        >>> fuse(concatenated_rows((4, 2), {"gate": 2, "up": 2}), {"gate": torch.zeros(2, 2), "up": torch.ones(2, 2)})
        tensor([[0., 0.],
                [0., 0.],
                [1., 1.],
                [1., 1.]])
    """
    ends = (piece.megatron_box for piece in layout.pieces)
    shape = tuple(max(stops) for stops in zip(*([stop for _, stop in box] for box in ends), strict=True))
    out = next(iter(hf_tensors.values())).new_empty(shape)
    assemble(layout, hf_tensors, out)
    return out


def split(layout: Layout, weight: "Tensor") -> dict[str, "Tensor"]:
    """The inverse of `fuse`: the HF tensors, by role, that make a whole Megatron weight."""
    hf_tensors = {role: weight.new_empty(shape) for role, shape in layout.hf_shapes.items()}
    disassemble(layout, weight, whole(tuple(weight.shape)), hf_tensors)
    return hf_tensors


def _index(shape: Shape, first_row: int = 0, num_rows: int | None = None) -> tuple[slice, ...]:
    if not shape:
        return ()
    stop = shape[0] if num_rows is None else first_row + num_rows
    return (slice(first_row, stop, 1), *(slice(0, size, 1) for size in shape[1:]))


def _rows(shape: Shape, start: int, stop: int) -> Box:
    return ((start, stop), *whole(shape[1:]))


def identity(shape: Shape, permute: tuple[int, ...] | None = None, offset: float = 0.0) -> Layout:
    """The Megatron weight is one HF tensor plus `offset`, with its axes in another order if `permute` is given."""
    hf_shape = shape
    if permute:
        hf_shape = tuple(shape[permute.index(axis)] for axis in range(len(shape)))
    return Layout((Piece("weight", _index(hf_shape), whole(shape), permute, offset),), {"weight": hf_shape})


def padded(shape: Shape, axis: int, size: int) -> Layout:
    """The Megatron weight is the HF tensor, followed along `axis` by zeros from index `size` on.

    The zeros are rows of an embedding beyond the vocabulary, or columns of an output projection for heads that HF does
    not have.
    """
    hf_shape = (*shape[:axis], size, *shape[axis + 1 :])
    pieces = [Piece("weight", _index(hf_shape), whole(hf_shape))]
    if shape[axis] > size:
        rest = list(whole(shape))
        rest[axis] = (size, shape[axis])
        pieces.append(Piece(None, (), tuple(rest)))
    return Layout(tuple(pieces), {"weight": hf_shape})


def concatenated_rows(shape: Shape, roles: Mapping[str, int]) -> Layout:
    """HF tensors of `roles[role]` rows each, one after another: `[sum(rows), ...]`; for gate and up `[2F, H]`."""
    pieces, hf_shapes, start = [], {}, 0
    for role, num_rows in roles.items():
        hf_shapes[role] = (num_rows, *shape[1:])
        pieces.append(Piece(role, _index(hf_shapes[role]), _rows(shape, start, start + num_rows)))
        start += num_rows
    return Layout(tuple(pieces), hf_shapes)


def swapped_columns(shape: Shape) -> Layout:
    """A matrix with the two halves of its columns exchanged."""
    half = shape[1] // 2
    rows = slice(0, shape[0], 1)
    parts = ((0, half), (half, shape[1]))
    pieces = tuple(
        Piece("weight", (rows, slice(*hf_columns, 1)), ((0, shape[0]), columns))
        for hf_columns, columns in zip(parts, reversed(parts), strict=True)
    )
    return Layout(pieces, {"weight": shape})


def grouped_rows(shape: Shape, num_groups: int, roles: Mapping[str, int]) -> Layout:
    """HF tensors interleaved by group: group `g` is the `g`-th block of `roles[role]` rows of each role in turn.

    Rows of any further groups, which HF does not have, are zero. With `roles = {"q": A // G * D, "k": D, "v": D}` this
    is Megatron's fused QKV, `[G * (A // G + 2) * D, ...]` (megatron-core 0.19, `SelfAttention`).
    """
    pieces, hf_shapes, start = [], {}, 0
    for role, num_rows in roles.items():
        hf_shapes[role] = (num_groups * num_rows, *shape[1:])
    for group in range(num_groups):
        for role, num_rows in roles.items():
            index = _index(hf_shapes[role], group * num_rows, num_rows)
            pieces.append(Piece(role, index, _rows(shape, start, start + num_rows)))
            start += num_rows
    if shape[0] > start:
        pieces.append(Piece(None, (), _rows(shape, start, shape[0])))
    return Layout(tuple(pieces), hf_shapes)


def section_rows(shape: Shape, num_groups: int, sections: Sequence[int], section: int) -> Layout:
    """The same section of each group of rows of an HF tensor: `[G * sections[section], ...]`.

    Args:
        num_groups: G; the HF tensor has all sections of group 0, then those of group 1, and so on.
        sections: the number of rows of each section in a group.
        section: the index of the section that the weight takes.
    """
    num_rows, before = sections[section], sum(sections[:section])
    hf_shape = (num_groups * sum(sections), *shape[1:])
    pieces = [
        Piece(
            "weight",
            _index(hf_shape, group * sum(sections) + before, num_rows),
            _rows(shape, group * num_rows, (group + 1) * num_rows),
        )
        for group in range(num_groups)
    ]
    return Layout(tuple(pieces), {"weight": hf_shape})


def gated_grouped_rows(shape: Shape, num_groups: int, heads: int, head_dim: int) -> Layout:
    """Fused QKV with an output gate: for each group, the queries of its heads, their gates, one key and one value.

    HF's q tensor has, for each head, its query and then its gate. Megatron's weight is
    `[G * (2 * heads + 2) * D, ...]` (megatron-core 0.19, `SelfAttention` with `attention_output_gate`).

    Args:
        heads: query heads per group.
    """
    hf_shapes = {"q": (num_groups * heads * 2 * head_dim, *shape[1:])}
    hf_shapes |= dict.fromkeys(("k", "v"), (num_groups * head_dim, *shape[1:]))
    pieces, start = [], 0
    for group in range(num_groups):
        queries = [("q", (2 * (group * heads + head) + part) * head_dim) for part in (0, 1) for head in range(heads)]
        for role, first in (*queries, ("k", group * head_dim), ("v", group * head_dim)):
            pieces.append(Piece(role, _index(hf_shapes[role], first, head_dim), _rows(shape, start, start + head_dim)))
            start += head_dim
    return Layout(tuple(pieces), hf_shapes)


def stacked_expert(
    shape: Shape,
    num_experts: int,
    expert: int,
    *,
    num_parts: int = 1,
    interleaved: bool = False,
    transposed: bool = False,
) -> Layout:
    """One expert of an HF tensor that holds all experts: `[E, *shape]`, or `[E, H, F]` for a weight `[F, H]`.

    Args:
        num_parts: the number of row blocks in the Megatron weight (2 for gate and up).
        interleaved: whether the rows of the parts alternate in the HF tensor; otherwise the parts follow each other, as
            in the Megatron weight.
        transposed: whether the HF tensor has rows and columns exchanged.
    """
    num_rows = shape[0] // num_parts
    pieces = []
    for part in range(num_parts):
        rows = slice(part * num_rows, (part + 1) * num_rows, 1)
        if interleaved:
            rows = slice(part, part + (num_rows - 1) * num_parts + 1, num_parts)
        index = (rows, *(slice(0, size, 1) for size in shape[1:]))
        box = _rows(shape, part * num_rows, (part + 1) * num_rows)
        pieces.append(
            Piece("weight", (expert, *(index[::-1] if transposed else index)), box, _reverse(shape, transposed))
        )
    return Layout(tuple(pieces), {"weight": (num_experts, *(shape[::-1] if transposed else shape))})


def _reverse(shape: Shape, transposed: bool) -> tuple[int, ...] | None:
    return tuple(reversed(range(len(shape)))) if transposed and len(shape) > 1 else None


def regrouped_rows(
    shape: Shape,
    num_groups: int,
    rows: Mapping[str, int],
    *,
    order: Sequence[str] | None = None,
    num_chunks: int = 1,
    transposed: bool = False,
) -> Layout:
    """Like `grouped_rows`, but with all parts in one HF tensor.

    Args:
        rows: for each part, its number of rows in a group.
        order: the order of the parts in the HF tensor; default: that of `rows`.
        num_chunks: the HF tensor consists of this many chunks, each with all parts of an equal share of the groups.
        transposed: whether the HF tensor has rows and columns exchanged.
    """
    pieces, start = [], 0
    groups_per_chunk = num_groups // num_chunks
    first_rows, chunk_rows = {}, 0
    for part in order or rows:
        first_rows[part] = chunk_rows
        chunk_rows += groups_per_chunk * rows[part]
    hf_shape = (num_groups * sum(rows.values()), *shape[1:])
    for group in range(num_groups):
        chunk, place = divmod(group, groups_per_chunk)
        for part, num_rows in rows.items():
            index = _index(hf_shape, chunk * chunk_rows + first_rows[part] + place * num_rows, num_rows)
            pieces.append(Piece("weight", index, _rows(shape, start, start + num_rows)))
            start += num_rows
    if shape[0] > start:
        pieces.append(Piece(None, (), _rows(shape, start, shape[0])))
    layout = Layout(tuple(pieces), {"weight": hf_shape})
    return flipped(layout) if transposed else layout


def flipped(layout: Layout) -> Layout:
    """The same layout for HF tensors with rows and columns exchanged; vectors do not change."""

    def flip(piece: Piece) -> Piece:
        if piece.role is None or len(piece.hf_index) < 2:
            return piece
        assert piece.permute is None
        axes = tuple(reversed(range(len(piece.hf_index))))
        return Piece(piece.role, piece.hf_index[::-1], piece.megatron_box, axes, piece.offset)

    shapes = {role: shape[::-1] for role, shape in layout.hf_shapes.items()}
    return Layout(tuple(flip(piece) for piece in layout.pieces), shapes)
