"""What the layers of a model remember while it generates.

B sequences of one pass, S tokens of each, D channels of a head.
"""

import torch
from megatron.core.inference.contexts import StaticInferenceContext


class GenerationContext(StaticInferenceContext):
    """megatron-core's context of a static batch, whose sequences may differ in length, and whose keys are rotated.

    Sequences end in the same column of the cache. So shorter ones begin later, and a pass over prompts covers the
    sequences of one length: there is no padding that a layer could see. A pass of one token covers all sequences.

    Args:
        num_sequences: how many there are.
        capacity: the tokens that each has room for.

    Attributes:
        positions: those of the pass's tokens in their sequences: a slice if they are the same for all, else `[B]`.
        first_column: where the pass's keys begin.
    """

    def __init__(self, num_sequences: int, capacity: int) -> None:
        super().__init__(num_sequences, capacity)
        self.positions: slice | torch.Tensor = slice(0)
        self.first_column = 0
        self._states: dict[tuple[int, str], torch.Tensor] = {}
        self._rotations: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}

    def start_pass(self, first_row: int, first_column: int, column: int, positions: slice | torch.Tensor) -> None:
        """Says which sequences come, from `first_row` on, and that their next tokens stand in `column`."""
        self.batch_size_offset, self.first_column, self.sequence_len_offset = first_row, first_column, column
        self.positions = positions
        self.decode_mode = column > first_column
        self._rotations.clear()

    def remember(self, layer: int, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Adds `[S, B, ...]` to what a layer remembers; all of it, `[S of all passes, B, ...]`."""
        memory = self.key_value_memory_dict.get(layer)
        if memory is None:  # zeros, because even keys that no one sees must be numbers
            size = (self.max_sequence_length, self.max_batch_size)
            memory = self.key_value_memory_dict[layer] = tuple(part.new_zeros(*size, *part.shape[2:]) for part in parts)
        start, rows = self.sequence_len_offset, self._rows(parts[0].shape[1])
        end = start + parts[0].shape[0]
        for kept, part in zip(memory, parts, strict=True):
            kept[start:end, rows] = part
        return tuple(kept[self.first_column : end, rows] for kept in memory)

    def state(self, layer: int, name: str, like: torch.Tensor) -> torch.Tensor:
        """What a recurrent layer keeps of the pass's sequences, shaped as `like` `[B, ...]` and zero at first.

        It is a view, to be written into.
        """
        if (layer, name) not in self._states:
            self._states[layer, name] = like.new_zeros(self.max_batch_size, *like.shape[1:])
        state = self._states[layer, name][self._rows(like.shape[0])]
        return state if self.decode_mode else state.zero_()

    def _rows(self, num_rows: int) -> slice:
        return slice(self.batch_size_offset, self.batch_size_offset + num_rows)

    def rotate(self, x: torch.Tensor, angles: torch.Tensor, interleaved: bool, factor: float) -> torch.Tensor:
        """Rotates the first channels of `x` `[S, B, A, D]`, as many as there are angles, in pairs.

        Args:
            angles: of all positions, `[positions, 1, 1, R]`. A pair is channels i and i + R / 2, or neighbours.
            factor: multiplies the result (YaRN's concentration).
        """
        key = (angles.data_ptr(), angles.shape, x.dtype, factor)
        if key not in self._rotations:  # once in a pass, not in each layer
            own = angles[self.positions]
            own = own if isinstance(self.positions, slice) else own.transpose(0, 1)
            sin = own.sin() * factor
            sign = torch.ones_like(sin)
            sign[..., 0 : None if interleaved else sin.shape[-1] // 2 : 2 if interleaved else 1] = -1
            self._rotations[key] = (own.cos() * factor).to(x.dtype), (sin * sign).to(x.dtype)
        cos, sin = self._rotations[key]
        num_rotated = cos.shape[-1]
        rotated = x[..., :num_rotated]
        if interleaved:
            partners = rotated.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            partners = rotated.roll(num_rotated // 2, -1)
        rotated = rotated * cos + partners * sin
        return rotated if num_rotated == x.shape[-1] else torch.cat([rotated, x[..., num_rotated:]], -1)


def with_earlier_inputs(context: GenerationContext, layer: int, x: torch.Tensor, num_earlier: int) -> torch.Tensor:
    """The inputs `x` `[B, S, C]` of a convolution after the `num_earlier` before them, which are remembered."""
    earlier = context.state(layer, "inputs", x[:, :1].expand(-1, num_earlier, -1))
    x = torch.cat([earlier, x], dim=1)
    earlier.copy_(x[:, x.shape[1] - num_earlier :])
    return x
