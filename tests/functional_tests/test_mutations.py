"""The parity suite notices mistakes: each of these, made on purpose, must break it.

A round trip alone would survive most of them, because export makes the same mistake backwards.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from megatron.bridge.models import rotary
from megatron.bridge.models.conversion import blocks, config_mapping, placement
from megatron.bridge.models.conversion import layout as layouts
from megatron.bridge.models.conversion.layout import Layout, Shape
from tests.parity import parity
from tests.ranks import RankFailure
from tests.tiny_models import TINY_MODELS

MonkeyPatch = pytest.MonkeyPatch


def _swap_gate_and_up(patch: MonkeyPatch) -> None:
    right = layouts.concatenated_rows
    patch.setattr(
        layouts,
        "concatenated_rows",
        lambda shape, roles: right(shape, dict(reversed(roles.items()))),
    )


def _swap_q_and_k_norms(patch: MonkeyPatch) -> None:
    right = blocks.attention

    def swapped(**kwargs: Any) -> blocks.Mappings:
        mappings = right(**kwargs)
        norms = [mapping for mapping in mappings if str(mapping.hf_param).endswith("_norm.weight")]
        norms[0].hf_param, norms[1].hf_param = norms[1].hf_param, norms[0].hf_param
        return mappings

    patch.setattr(blocks, "attention", swapped)


def _do_not_group_qkv(patch: MonkeyPatch) -> None:
    def ungrouped(shape: Shape, num_groups: int, roles: Mapping[str, int]) -> Layout:
        return layouts.concatenated_rows(shape, {role: num_groups * rows for role, rows in roles.items()})

    patch.setattr(layouts, "grouped_rows", ungrouped)


def _swap_k_and_v(patch: MonkeyPatch) -> None:
    right = layouts.grouped_rows
    order = ("q", "v", "k")
    patch.setattr(layouts, "grouped_rows", lambda shape, n, roles: right(shape, n, {r: roles[r] for r in order}))


def _cut_at_the_wrong_place(patch: MonkeyPatch) -> None:
    """Every rank takes the first part of row-parallel weights."""
    right = placement.read_placement

    def wrong(chunks: Any) -> Any:
        parameters = right(chunks)
        for parameter in parameters:
            if parameter.name.endswith("linear_proj.weight"):
                shard = parameter.shards[0]
                first = (shard.box[0], (0, shard.box[1][1] - shard.box[1][0]))
                object.__setattr__(shard, "box", first)
        return parameters

    patch.setattr("megatron.bridge.models.conversion.weight_stream.read_placement", wrong)


def _forget_bias(patch: MonkeyPatch) -> None:
    right = blocks.attention
    patch.setattr(blocks, "attention", lambda **kwargs: right(**{**kwargs, "output_bias": False}))


def _forget_bias_on_both_sides(patch: MonkeyPatch) -> None:
    """As the reference of the field does: neither the model nor the mappings know of the bias."""
    _forget_bias(patch)
    patch.setattr("megatron.bridge.models.layer_specs._set_biases", lambda spec, config: None)


def _window_off_by_one(patch: MonkeyPatch) -> None:
    right = config_mapping.sliding_window_fields

    def wrong(*args: Any) -> dict[str, Any]:
        fields = right(*args)
        return {**fields, "window_size": (fields["window_size"][0] + 1, 0)}

    patch.setattr(config_mapping, "sliding_window_fields", wrong)


def _windows_on_the_other_layers(patch: MonkeyPatch) -> None:
    right = config_mapping.sliding_window_fields

    def wrong(*args: Any) -> dict[str, Any]:
        fields = right(*args)
        return {**fields, "window_attn_skip_freq": [1 - window for window in fields["window_attn_skip_freq"]]}

    patch.setattr(config_mapping, "sliding_window_fields", wrong)


def _ignore_rope_scaling(patch: MonkeyPatch) -> None:
    patch.setattr("megatron.bridge.models.gpt_provider.apply_rope_parameters", lambda *args: None)


def _ignore_attention_scaling(patch: MonkeyPatch) -> None:
    patch.setattr(rotary, "attention_scaling", lambda *args: 1.0)


def _ignore_sequence_length(patch: MonkeyPatch) -> None:
    patch.setattr(rotary, "_LENGTH_DEPENDENT", ())


def _swap_norms(patch: MonkeyPatch) -> None:
    right = blocks.pre_norms
    names = {"attention": "post_attention_layernorm", "mlp": "input_layernorm"}
    patch.setattr(blocks, "pre_norms", lambda: right(**names))


def _lose_the_last_vocabulary_row(patch: MonkeyPatch) -> None:
    right = layouts.padded

    def wrong(shape: Shape, axis: int, size: int) -> Layout:
        layout = right(shape, axis, size)
        last = layouts.Piece(None, (), ((size - 1, size), (0, shape[1])))
        return Layout((*layout.pieces, last), layout.hf_shapes)

    patch.setattr(layouts, "padded", wrong)


MUTATIONS: list[tuple[Callable[[MonkeyPatch], None], str, dict[str, Any]]] = [
    (_swap_gate_and_up, "llama", {}),
    (_swap_q_and_k_norms, "qwen3", {}),
    (_do_not_group_qkv, "llama", {}),
    (_swap_k_and_v, "llama", {}),
    (_cut_at_the_wrong_place, "llama", {"tp": 2}),
    (_forget_bias, "llama-attention-bias", {}),
    (_forget_bias, "qwen3-attention-bias", {}),
    (_forget_bias_on_both_sides, "qwen3-attention-bias", {}),
    (_window_off_by_one, "mistral-window", {}),
    (_windows_on_the_other_layers, "qwen2-window-on-some-layers", {"pp": 2}),
    (_ignore_rope_scaling, "llama-llama3-rope", {}),
    (_ignore_rope_scaling, "llama-dynamic-rope", {}),
    (_ignore_attention_scaling, "qwen3-yarn-rope", {}),
    (_ignore_sequence_length, "llama-longrope-long", {}),
    (_swap_norms, "llama", {}),
    (_lose_the_last_vocabulary_row, "llama-odd-vocabulary", {"tp": 2}),
]


@pytest.mark.parametrize(("mutate", "name", "layout"), MUTATIONS, ids=[f"{m.__name__}-{n}" for m, n, _ in MUTATIONS])
def test_mutation_is_caught(
    mutate: Callable[[MonkeyPatch], None],
    name: str,
    layout: dict[str, Any],
    tmp_path: Path,
    monkeypatch: MonkeyPatch,
) -> None:
    mutate(monkeypatch)
    try:
        found = parity(TINY_MODELS[name], layout, tmp_path)
    except RankFailure as error:
        assert "PlanError" in str(error), "a mistake in the plan must be the plan's own error"
    else:
        assert not found.holds
        assert found.max_diff > 1e-3
