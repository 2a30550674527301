"""Layouts at arbitrary shapes, against plain torch code that builds the same weight in one expression."""

from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron.bridge.models.conversion import layout as layouts
from megatron.bridge.models.conversion.layout import Layout
from megatron.bridge.transport.boxes import Box

small = st.integers(1, 5)


def numbered(*shape: int, start: int = 0) -> torch.Tensor:
    """A tensor in which every element is different."""
    return torch.arange(start, start + prod(shape)).view(shape)


def box_of(draw: st.DrawFn, shape: tuple[int, ...]) -> Box:
    """A random non-empty box in a tensor of `shape`."""
    box = []
    for size in shape:
        start = draw(st.integers(0, size - 1))
        box.append((start, draw(st.integers(start + 1, size))))
    return tuple(box)


def check(data: st.DataObject, layout: Layout, hf_tensors: dict[str, torch.Tensor], expected: torch.Tensor) -> None:
    """The layout builds `expected`, takes it apart again, and does both for any box of it."""
    for role, tensor in hf_tensors.items():
        assert tuple(layout.hf_shapes[role]) == tuple(tensor.shape)
    assert torch.equal(layouts.fuse(layout, hf_tensors), expected)
    for role, tensor in layouts.split(layout, expected).items():
        assert torch.equal(tensor, hf_tensors[role])
    assert sum(piece.num_elements for piece in layout.pieces) == expected.numel()

    box = data.draw(st.composite(box_of)(tuple(expected.shape)))
    index = layouts.slices(box)
    part = torch.full([stop - start for start, stop in box], -1, dtype=expected.dtype)
    layouts.assemble(layout, hf_tensors, part, box)
    assert torch.equal(part, expected[index])
    empty = {role: torch.full_like(tensor, -1) for role, tensor in hf_tensors.items()}
    written = layouts.disassemble(layout, part, box, empty)
    for role, tensor in empty.items():
        filled = tensor != -1
        assert filled.sum().item() == written.get(role, 0)
        assert torch.equal(tensor[filled], hf_tensors[role][filled])


@given(st.data(), small, small, small, small, st.integers(0, 2), st.booleans())
def test_qkv_is_grouped(
    data: st.DataObject, groups: int, ratio: int, head_dim: int, hidden: int, added: int, bias: bool
) -> None:
    tail = () if bias else (hidden,)
    q = numbered(groups * ratio * head_dim, *tail)
    k = numbered(groups * head_dim, *tail, start=10_000)
    v = numbered(groups * head_dim, *tail, start=20_000)
    parts = [q.view(groups, ratio * head_dim, *tail), k.view(groups, head_dim, *tail), v.view(groups, head_dim, *tail)]
    expected = torch.cat(parts, dim=1).reshape(-1, *tail)
    expected = torch.cat([expected, expected.new_zeros(added * (ratio + 2) * head_dim, *tail)])
    rows = {"q": ratio * head_dim, "k": head_dim, "v": head_dim}
    layout = layouts.grouped_rows(tuple(expected.shape), groups, rows)
    check(data, layout, {"q": q, "k": k, "v": v}, expected)


@given(st.data(), small, small, small, small, st.booleans())
def test_fused_qkv_is_regrouped(
    data: st.DataObject, groups: int, ratio: int, head_dim: int, hidden: int, bias: bool
) -> None:
    tail = () if bias else (hidden,)
    fused = numbered(groups * (ratio + 2) * head_dim, *tail)
    q, k, v = fused.split([groups * ratio * head_dim, groups * head_dim, groups * head_dim])
    parts = [q.view(groups, ratio * head_dim, *tail), k.view(groups, head_dim, *tail), v.view(groups, head_dim, *tail)]
    expected = torch.cat(parts, dim=1).reshape(-1, *tail)
    rows = {"q": ratio * head_dim, "k": head_dim, "v": head_dim}
    layout = layouts.regrouped_rows(tuple(expected.shape), groups, rows)
    check(data, layout, {"weight": fused}, expected)


@given(st.data(), small, small, small, small, small, st.permutations("qkv"), st.booleans(), st.booleans())
def test_fused_qkv_in_chunks_and_any_order(
    data: st.DataObject,
    num_chunks: int,
    per_chunk: int,
    ratio: int,
    head_dim: int,
    hidden: int,
    order: list[str],
    bias: bool,
    transposed: bool,
) -> None:
    tail = () if bias else (hidden,)
    rows = {"q": ratio * head_dim, "k": head_dim, "v": head_dim}
    groups = num_chunks * per_chunk
    parts = {
        role: numbered(groups * num, *tail, start=10_000 * place) for place, (role, num) in enumerate(rows.items())
    }
    chunked = {role: part.view(num_chunks, -1, *tail) for role, part in parts.items()}
    fused = torch.cat([chunked[role] for role in order], dim=1).flatten(0, 1)
    expected = torch.cat([parts[role].view(groups, rows[role], *tail) for role in "qkv"], dim=1).flatten(0, 1)
    layout = layouts.regrouped_rows(
        tuple(expected.shape), groups, rows, order=order, num_chunks=num_chunks, transposed=transposed
    )
    check(data, layout, {"weight": fused.T.contiguous() if transposed and not bias else fused}, expected)


@given(st.data(), small, small, small, small, st.booleans())
def test_output_gates_follow_the_queries_of_their_group(
    data: st.DataObject, groups: int, heads: int, head_dim: int, hidden: int, bias: bool
) -> None:
    tail = () if bias else (hidden,)
    q = numbered(groups * heads * 2 * head_dim, *tail)
    k = numbered(groups * head_dim, *tail, start=10_000)
    v = numbered(groups * head_dim, *tail, start=20_000)
    query, gate = q.view(groups, heads, 2, head_dim, *tail).unbind(2)
    parts = [query.flatten(1, 2), gate.flatten(1, 2), k.view(groups, head_dim, *tail), v.view(groups, head_dim, *tail)]
    expected = torch.cat(parts, dim=1).flatten(0, 1)
    layout = layouts.gated_grouped_rows(tuple(expected.shape), groups, heads, head_dim)
    check(data, layout, {"q": q, "k": k, "v": v}, expected)


@given(st.data(), small, st.lists(small, min_size=1, max_size=4), small)
def test_sections_of_each_group(data: st.DataObject, groups: int, sections: list[int], hidden: int) -> None:
    fused = numbered(groups * sum(sections), hidden)
    for section, part in enumerate(fused.view(groups, -1, hidden).split(sections, dim=1)):
        expected = part.flatten(0, 1)
        layout = layouts.section_rows(tuple(expected.shape), groups, sections, section)
        assert layout.hf_shapes == {"weight": tuple(fused.shape)}
        assert torch.equal(layouts.fuse(layout, {"weight": fused}), expected)
        box = data.draw(st.composite(box_of)(tuple(expected.shape)))
        out = torch.full_like(fused, -1)
        written = layouts.disassemble(layout, expected[layouts.slices(box)], box, {"weight": out})
        assert (out != -1).sum().item() == written["weight"] == expected[layouts.slices(box)].numel()
        assert torch.equal(out[out != -1], fused[out != -1])


@given(st.data(), small, small, st.booleans())
def test_gate_comes_before_up(data: st.DataObject, ffn: int, hidden: int, bias: bool) -> None:
    tail = () if bias else (hidden,)
    gate, up = numbered(ffn, *tail), numbered(ffn, *tail, start=10_000)
    layout = layouts.concatenated_rows((2 * ffn, *tail), {"gate": ffn, "up": ffn})
    check(data, layout, {"gate": gate, "up": up}, torch.cat([gate, up]))


@given(st.data(), small, small, st.integers(0, 5))
def test_vocabulary_padding_is_zero_and_not_exported(data: st.DataObject, vocab: int, hidden: int, pad: int) -> None:
    weight = numbered(vocab, hidden, start=1)
    expected = torch.nn.functional.pad(weight, (0, 0, 0, pad))
    layout = layouts.padded(tuple(expected.shape), 0, vocab)
    check(data, layout, {"weight": weight}, expected)


@given(st.data(), small, small, st.integers(0, 5))
def test_columns_of_added_heads_are_zero(data: st.DataObject, hidden: int, columns: int, pad: int) -> None:
    weight = numbered(hidden, columns, start=1)
    expected = torch.nn.functional.pad(weight, (0, pad))
    check(data, layouts.padded(tuple(expected.shape), 1, columns), {"weight": weight}, expected)


@given(st.data(), st.permutations(range(3)), small, small, small)
def test_permuted_axes(data: st.DataObject, order: list[int], a: int, b: int, c: int) -> None:
    weight = numbered(a, b, c)
    expected = weight.permute(order).contiguous()
    check(data, layouts.identity(tuple(expected.shape), tuple(order)), {"weight": weight}, expected)


@given(st.data(), st.lists(small, max_size=3))
def test_identity(data: st.DataObject, shape: list[int]) -> None:
    weight = numbered(*shape)
    check(data, layouts.identity(tuple(shape)), {"weight": weight}, weight)


@given(st.data(), small, st.sampled_from((-1.0, 0.5)), st.sampled_from((torch.bfloat16, torch.float32)))
def test_offset(data: st.DataObject, size: int, offset: float, dtype: torch.dtype) -> None:
    """The sum is rounded once, in the dtype of where it goes."""
    weight = numbered(size).to(dtype) / 8 + 0.5
    check(data, layouts.identity((size,), offset=offset), {"weight": weight}, weight + offset)
    fine = torch.empty(size)
    layouts.assemble(layouts.identity((size,), offset=0.001), {"weight": weight}, fine)
    assert torch.equal(fine, (weight.double() + 0.001).float())


@given(st.data(), small, small, small)
def test_strided_piece_of_a_stacked_tensor(data: st.DataObject, experts: int, rows: int, hidden: int) -> None:
    """A piece may drop an axis and step over rows: expert `e` of a stack in which gate and up rows alternate."""
    stack = numbered(experts, 2 * rows, hidden)
    expert = data.draw(st.integers(0, experts - 1))
    pieces = tuple(
        layouts.Piece(
            "stack",
            (expert, slice(parity, 2 * (rows - 1) + parity + 1, 2), slice(0, hidden, 1)),
            ((parity * rows, (parity + 1) * rows), (0, hidden)),
        )
        for parity in (0, 1)
    )
    expected = torch.cat([stack[expert, 0::2], stack[expert, 1::2]])
    part = torch.full_like(expected, -1)
    box = data.draw(st.composite(box_of)(tuple(expected.shape)))
    out = part[layouts.slices(box)]
    layouts.assemble(Layout(pieces, {"stack": tuple(stack.shape)}), {"stack": stack}, out, box)
    assert torch.equal(out, expected[layouts.slices(box)])


@given(st.data(), small, small, small, st.sampled_from((1, 2)), st.booleans(), st.booleans(), st.booleans())
def test_expert_of_a_stacked_tensor(
    data: st.DataObject,
    experts: int,
    ffn: int,
    hidden: int,
    parts: int,
    interleaved: bool,
    transposed: bool,
    bias: bool,
) -> None:
    tail = () if bias else (hidden,)
    weights = numbered(experts, parts, ffn, *tail)  # of each expert, part by part
    rows = weights.transpose(1, 2) if interleaved else weights
    stack = rows.reshape(experts, parts * ffn, *tail)
    stack = stack.transpose(1, 2).contiguous() if transposed and not bias else stack
    expert = data.draw(st.integers(0, experts - 1))
    expected = weights[expert].reshape(parts * ffn, *tail)
    layout = layouts.stacked_expert(
        tuple(expected.shape), experts, expert, num_parts=parts, interleaved=interleaved, transposed=transposed
    )
    assert layout.hf_shapes == {"weight": tuple(stack.shape)}
    assert torch.equal(layouts.fuse(layout, {"weight": stack}), expected)
    empty = torch.full_like(stack, -1)
    layouts.disassemble(layout, expected, layouts.whole(tuple(expected.shape)), {"weight": empty})
    assert torch.equal(empty[expert], stack[expert]) and (empty != -1).sum() == expected.numel()
    box = data.draw(st.composite(box_of)(tuple(expected.shape)))
    part = expected.new_empty([stop - start for start, stop in box])
    layouts.assemble(layout, {"weight": stack}, part, box)
    assert torch.equal(part, expected[layouts.slices(box)])


@given(st.data(), small, small)
def test_halves_of_the_columns_are_exchanged(data: st.DataObject, rows: int, half: int) -> None:
    weight = numbered(rows, 2 * half)
    expected = torch.cat([weight[:, half:], weight[:, :half]], dim=1)
    check(data, layouts.swapped_columns((rows, 2 * half)), {"weight": weight}, expected)
