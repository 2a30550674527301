"""The parity suite notices mistakes: each of these, made on purpose, must break it.

A round trip alone would survive most of them, because export makes the same mistake backwards.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron.bridge.models import placement
from megatron.bridge.models.conversion import blocks
from megatron.bridge.models.conversion import layout as layouts
from megatron.bridge.models.conversion.blocks import prediction
from megatron.bridge.models.conversion.layout import Layout
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.param_mapping import AutoMapping, MegatronParamMapping
from megatron.bridge.models.mistral.mistral_bridge import MistralBridge
from megatron.bridge.models.qwen.qwen2_bridge import Qwen2Bridge
from megatron.bridge.models.transformer import rotary
from megatron.bridge.transport.boxes import Shape
from tests.functional_tests.test_multi_token_prediction import prediction_parity
from tests.parity import parity
from tests.ranks import RankFailure
from tests.tiny_models import TINY_MODELS

MonkeyPatch = pytest.MonkeyPatch


def _swap_gate_and_up(patch: MonkeyPatch) -> None:
    right = layouts.concatenated_rows
    patch.setattr(layouts, "concatenated_rows", lambda shape, roles: right(shape, dict(reversed(roles.items()))))


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
    patch.setattr("megatron.bridge.models.transformer.layer_specs._set_biases", lambda spec, config: None)


def _change_windows(
    patch: MonkeyPatch, family: type[MegatronModelBridge], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """Puts a part that reads windows wrongly into the config of a family."""
    [right] = [part for part in family.CONFIG if "sliding_window" in part.reads]
    read: Any = right.to_provider
    wrong = replace(right, to_provider=lambda hf_config: {**read(hf_config), **change(read(hf_config))})
    patch.setattr(family, "CONFIG", tuple(wrong if part is right else part for part in family.CONFIG))


def _window_off_by_one(patch: MonkeyPatch) -> None:
    _change_windows(patch, MistralBridge, lambda read: {"window_size": (read["window_size"][0] + 1, 0)})


def _windows_on_the_other_layers(patch: MonkeyPatch) -> None:
    def wrong(read: dict[str, Any]) -> dict[str, Any]:
        return {"window_attn_skip_freq": [1 - window for window in read["window_attn_skip_freq"]]}

    _change_windows(patch, Qwen2Bridge, wrong)


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
        last = layouts.Piece(None, (), ((size - 1, size), *layouts.whole(shape[1:])))
        return Layout((*layout.pieces, last), layout.hf_shapes)

    patch.setattr(layouts, "padded", wrong)


def _take_fused_qkv_as_it_is(patch: MonkeyPatch) -> None:
    patch.setattr(layouts, "regrouped_rows", lambda shape, *args, **kwargs: layouts.identity(shape))


def _swap_post_norms(patch: MonkeyPatch) -> None:
    right = blocks.post_norms
    names = {"attention": "post_feedforward_layernorm", "mlp": "post_attention_layernorm"}
    patch.setattr(blocks, "post_norms", lambda: right(**names))


def _normalise_each_rank_by_itself(patch: MonkeyPatch) -> None:
    patch.setattr(
        "megatron.bridge.models.transformer.qk_norm.reduce_from_tensor_model_parallel_region", lambda x: 2 * x
    )


def _swap_xielu_slopes(patch: MonkeyPatch) -> None:
    from megatron.bridge.models.apertus.apertus_bridge import ApertusBridge

    right = ApertusBridge.mapping_registry

    def swapped(self: Any) -> Any:
        registry = right(self)
        slopes = [mapping for mapping in registry if ".alpha_" in mapping.megatron_param]
        slopes[0].hf_param, slopes[1].hf_param = slopes[1].hf_param, slopes[0].hf_param
        return type(registry)(*registry.entries)

    patch.setattr(ApertusBridge, "mapping_registry", swapped)


def _forget_position_of_query(patch: MonkeyPatch) -> None:
    from megatron.bridge.models.mistral.modeling_ministral3 import Ministral3Provider

    patch.setattr(Ministral3Provider, "modify_layer_spec", lambda self, spec: None)


def _take_the_best_group_by_its_maximum(patch: MonkeyPatch) -> None:
    from megatron.bridge.models.transformer import router

    right = router.mask_groups
    patch.setattr(router, "mask_groups", lambda scores, groups, chosen, _: right(scores, groups, chosen, "max"))


def _take_alternating_gate_and_up_as_halves(patch: MonkeyPatch) -> None:
    right = layouts.stacked_expert
    patch.setattr(layouts, "stacked_expert", lambda *args, **kwargs: right(*args, **{**kwargs, "interleaved": False}))


def _count_experts_backwards(patch: MonkeyPatch) -> None:
    right = layouts.stacked_expert
    patch.setattr(
        layouts, "stacked_expert", lambda shape, n, expert, **kwargs: right(shape, n, n - 1 - expert, **kwargs)
    )


def _forget_layer_scalar(patch: MonkeyPatch) -> None:
    from megatron.core.transformer.transformer_layer import TransformerLayer

    from megatron.bridge.models.gemma.modeling_gemma4 import Gemma4TransformerLayer

    patch.setattr(Gemma4TransformerLayer, "forward", TransformerLayer.forward)


def _leave_values_as_they_are(patch: MonkeyPatch) -> None:
    from megatron.bridge.models.gemma.modeling_gemma4 import Gemma4SelfAttention

    patch.setattr(Gemma4SelfAttention, "_normalise", lambda self, value: value)


def _share_with_the_first_layer_of_a_kind(patch: MonkeyPatch) -> None:
    from megatron.bridge.models.gemma.modeling_gemma4 import Gemma4Provider

    right = Gemma4Provider.kv_source
    patch.setattr(Gemma4Provider, "kv_source", lambda self, layer: 1 if right(self, layer) == 3 else right(self, layer))


def _give_layers_the_inputs_of_others(patch: MonkeyPatch) -> None:
    from megatron.bridge.models.gemma.modeling_gemma4_per_layer import PerLayerEmbedding

    right = PerLayerEmbedding.forward
    patch.setattr(
        PerLayerEmbedding,
        "forward",
        lambda self, *args: right(self, *args).roll(self.config.hidden_size_per_layer_input, -1),
    )


def _forget_factors_of_experts(patch: MonkeyPatch) -> None:
    from megatron.bridge.models.gemma.modeling_gemma4_moe import Gemma4Router, GeneralTopKRouter

    patch.setattr(Gemma4Router, "routing", GeneralTopKRouter.routing)


def _route_by_what_is_not_normed(patch: MonkeyPatch) -> None:
    from megatron.bridge.models.gemma.modeling_gemma4_moe import Gemma4Router, GeneralTopKRouter

    patch.setattr(Gemma4Router, "gating", GeneralTopKRouter.gating)


def _take_gates_for_queries(patch: MonkeyPatch) -> None:
    def gates_first(shape: Shape, num_groups: int, heads: int, head_dim: int) -> Layout:
        layout = right(shape, num_groups, heads, head_dim)
        order = [piece.hf_index for piece in layout.pieces if piece.role == "q"]
        moved = iter([*order[heads:], *order[:heads]] if num_groups == 1 else order[::-1])
        pieces = [replace(piece, hf_index=next(moved)) if piece.role == "q" else piece for piece in layout.pieces]
        return Layout(tuple(pieces), layout.hf_shapes)

    right = layouts.gated_grouped_rows
    patch.setattr(layouts, "gated_grouped_rows", gates_first)


def _mix_up_sections(block: str, one: str, other: str) -> Callable[[MonkeyPatch], None]:
    """Two parts of the same size, of a gated delta net and the like, take each other's place."""

    def mutate(patch: MonkeyPatch) -> None:
        right = getattr(blocks, block)

        def mixed_up(*args: Any, **kwargs: Any) -> blocks.Mappings:
            mappings = right(*args, **kwargs)
            for weight in ("in_proj.weight", "conv1d.weight"):
                found = {m.megatron_param: m for m in mappings if f".{weight}." in getattr(m, "megatron_param", "")}
                names = [name for name in found if name.endswith((f".{one}", f".{other}"))]
                if len(names) == 2:
                    a, b = (found[name] for name in names)
                    a.megatron_param, b.megatron_param = b.megatron_param, a.megatron_param
            return mappings

        patch.setattr(blocks, block, mixed_up)

    mutate.__name__ = f"_mix_up_{one}_and_{other}_of_{block}"
    return mutate


def _turn_filters_around(patch: MonkeyPatch) -> None:
    from megatron.bridge.models.transformer import short_conv

    right = short_conv.causal_conv1d
    patch.setattr(
        short_conv, "causal_conv1d", lambda x, weight, *args, **kwargs: right(x, weight.flip(1), *args, **kwargs)
    )


def _do_not_group_sections(patch: MonkeyPatch) -> None:
    right = layouts.section_rows
    patch.setattr(
        layouts,
        "section_rows",
        lambda shape, n, sections, section: right(shape, 1, [n * rows for rows in sections], section),
    )


def _count_stored_experts_backwards(patch: MonkeyPatch) -> None:
    right = MegatronParamMapping.resolve

    def wrong(self: Any, captures: Any) -> Any:
        if ".experts." in self.megatron_param and ".experts.*." in str(self.hf_param):
            reversed_hf = right(self, [captures[0], str(3 - int(captures[1]))])
            reversed_hf.megatron_param = right(self, captures).megatron_param
            return reversed_hf
        return right(self, captures)

    patch.setattr(MegatronParamMapping, "resolve", wrong)


def _in_rows(ending: str, what: str, rows_of: Callable[[Any], tuple[int, list[int]]]) -> Callable[[MonkeyPatch], None]:
    """The mistake of taking a weight's groups of rows as stored one kind after the other."""

    def mutate(patch: MonkeyPatch) -> None:
        right = AutoMapping.layout

        def wrong(self: Any, shape: Shape, config: Any) -> Layout:
            if self.megatron_param.endswith(ending):
                num_groups, rows = rows_of(config)
                return layouts.regrouped_rows(shape, num_groups, {str(part): num for part, num in enumerate(rows)})
            return right(self, shape, config)

        patch.setattr(AutoMapping, "layout", wrong)

    mutate.__name__ = f"rows_of_{what}"
    return mutate


_LATENT_KV = _in_rows(
    "linear_kv_up_proj.weight", "latent_kv", lambda c: (c.num_attention_heads, [c.qk_head_dim, c.v_head_dim])
)
_LATENT_Q = _in_rows(
    "linear_q_up_proj.weight", "latent_q", lambda c: (c.num_attention_heads, [c.qk_head_dim, c.qk_pos_emb_head_dim])
)
_SINKS = _in_rows("softmax_offset", "sinks", lambda c: (c.num_attention_heads // 2, [1, 1]))
_ROUTER_BIAS = _in_rows("router.expert_bias", "router_bias", lambda c: (c.num_moe_experts // 2, [1, 1]))
_ROUTER = _in_rows("router.weight", "router", lambda c: (c.num_moe_experts // 2, [1, 1]))


def _forget(argument: str) -> Callable[[MonkeyPatch], None]:
    """The mistake of a family that does not tell the block of experts about a part."""

    def mutate(patch: MonkeyPatch) -> None:
        right = blocks.moe
        patch.setattr(blocks, "moe", lambda **kwargs: right(**{**kwargs, argument: None}))

    mutate.__name__ = f"forget_{argument}"
    return mutate


def _swap_latent_norms(patch: MonkeyPatch) -> None:
    """Of the same size only if the latent vectors are."""
    right = blocks.latent_attention

    def swapped(**kwargs: Any) -> blocks.Mappings:
        mappings = right(**kwargs)
        norms = [mapping for mapping in mappings if "_a_layernorm" in str(mapping.hf_param)]
        norms[0].hf_param, norms[1].hf_param = norms[1].hf_param, norms[0].hf_param
        return mappings

    patch.setattr(blocks, "latent_attention", swapped)


def _shift_prediction_layer(patch: MonkeyPatch) -> None:
    right = blocks.multi_token_prediction

    def shifted(layer: blocks.Mappings, config: Any) -> blocks.Mappings:
        counts = {"num_hidden_layers": config.num_hidden_layers - 1, "num_nextn_predict_layers": 1}
        return right(layer, SimpleNamespace(**counts))

    patch.setattr(blocks, "multi_token_prediction", shifted)


def _swap_prediction_norms(patch: MonkeyPatch) -> None:
    right = blocks.multi_token_prediction

    def swapped(layer: blocks.Mappings, config: Any) -> blocks.Mappings:
        mappings = right(layer, config)
        norms = [mapping for mapping in mappings if getattr(mapping, "megatron_param", "").endswith("norm.weight")]
        first, second = (mapping for mapping in norms if mapping.megatron_param.split(".")[-2] in ("enorm", "hnorm"))
        first.hf_param, second.hf_param = second.hf_param, first.hf_param
        return mappings

    patch.setattr(blocks, "multi_token_prediction", swapped)


def _swap_inputs_of_the_projection(patch: MonkeyPatch) -> None:
    """The mistake of a family whose projection reads the hidden state first, or does not."""
    right = prediction._prediction_layer

    def swapped(*args: Any, hidden_state_first: bool = False, **kwargs: Any) -> blocks.Mappings:
        return right(*args, hidden_state_first=not hidden_state_first, **kwargs)

    patch.setattr(prediction, "_prediction_layer", swapped)


def _read_the_last_norm_in_front(patch: MonkeyPatch) -> None:
    names = prediction._MODULE_NAMES
    patch.setattr(
        prediction, "_MODULE_NAMES", {**names, "hnorm": names["final_layernorm"], "final_layernorm": names["hnorm"]}
    )


def _with(name: str, value: Any) -> Callable[[MonkeyPatch], None]:
    """The mistake of a family that gives one provider field another value."""

    def mutate(patch: MonkeyPatch) -> None:
        right = MegatronModelBridge.provider_bridge

        def wrong(self: Any, hf_pretrained: Any) -> Any:
            provider = right(self, hf_pretrained)
            assert getattr(provider, name) != value
            setattr(provider, name, value)
            return provider

        patch.setattr(MegatronModelBridge, "provider_bridge", wrong)

    mutate.__name__ = f"{name}-{value}"
    return mutate


_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

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
    (_lose_the_last_vocabulary_row, "phi-odd-vocabulary", {"tp": 2}),
    (_take_fused_qkv_as_it_is, "phi3", {}),
    (_swap_post_norms, "olmo2", {}),
    (_normalise_each_rank_by_itself, "olmo2", {"tp": 2}),
    (_swap_xielu_slopes, "apertus", {}),
    (_forget_position_of_query, "ministral3", {}),
    (_with("no_rope_freq", None), "smollm3", {}),
    (_with("no_rope_freq", None), "exaone4", {}),
    (_with("rotary_interleaved", False), "ernie-4.5", {}),
    (_with("rotary_percent", 1.0), "nemotron", {}),
    (_with("layernorm_zero_centered_gamma", False), "nemotron", {}),
    (_with("layernorm_zero_centered_gamma", False), "gemma", {}),
    (_with("embedding_multiplier", 1.0), "gemma", {}),
    (_with("attn_logit_softcapping", None), "gemma2", {}),
    (_with("final_logit_softcapping", None), "gemma2", {}),
    (_with("softmax_scale", None), "gemma2", {}),
    (_with("window_rope_parameters", _PLAIN_ROPE), "gemma3-tied-linear-rope", {}),
    (_with("window_rope_parameters", None), "olmo3-yarn-rope", {}),
    (_with("softmax_scale", None), "gemma4-keys-are-values", {}),
    (_forget_layer_scalar, "gemma4-keys-are-values", {}),
    (_leave_values_as_they_are, "gemma4-keys-are-values", {}),
    (_share_with_the_first_layer_of_a_kind, "gemma4-shared-wide", {}),
    (_give_layers_the_inputs_of_others, "gemma4-per-layer", {}),
    (_with("use_double_wide_mlp", False), "gemma4-e2b", {}),
    (_forget_factors_of_experts, "gemma4-moe", {}),
    (_route_by_what_is_not_normed, "gemma4-moe", {}),
    (_with("residual_multiplier", 1.0), "granite", {}),
    (_with("logits_multiplier", 1.0), "cohere2", {}),
    (_with("qk_layernorm_scope", "head"), "hunyuan-dense", {}),
    (_with("rope_parameters", _PLAIN_ROPE), "hunyuan-dense-alpha-rope", {}),
    (_with("layernorm_epsilon", 1e-2), "stablelm-head-norms", {}),
    (_take_the_best_group_by_its_maximum, "deepseek-v3-topk-6", {}),
    (_take_alternating_gate_and_up_as_halves, "gpt-oss", {}),
    (_count_experts_backwards, "granite-moe", {}),
    (_with("moe_router_renormalize", None), "deepseek-v3-no-renormalisation", {}),
    (_with("moe_router_group_score", None), "deepseek-v2-groups", {}),
    (_with("moe_router_topk_scaling_factor", 1.0), "deepseek-v3", {}),
    (_with("moe_router_enable_expert_bias", False), "glm4-moe", {}),
    (_with("moe_router_softmax_expert_bias", False), "ernie-4.5-moe", {}),
    (_with("moe_router_pre_softmax", False), "qwen2-moe", {}),
    (_with("mscale_all_dim", 0.0), "deepseek-v3", {}),
    (_with("latent_layernorm_epsilon", 1e-2), "moonlight", {}),
    (_with("activation_func_clamp_value", None), "gpt-oss", {}),
    (_with("softmax_type", "vanilla"), "gpt-oss", {}),
    (_with("window_attention", {"num_query_groups": 4}), "mimo-v2-flash", {}),
    (_with("window_attention", {"num_query_groups": 2, "softmax_type": "learnable"}), "mimo-v2-flash", {}),
    (_with("value_multiplier", 1.0), "mimo-v2-flash", {}),
    (_do_not_group_qkv, "mimo-v2-flash", {}),
    (_with("dsa_indexer_rope_interleaved", True), "deepseek-v3.2", {}),
    (_with("dsa_indexer_topk", 13), "deepseek-v3.2", {}),
    (_with("dsa_indexer_k_norm_epsilon", 1.0), "deepseek-v3.2", {}),
    (_with("dsa_indexer_rope_interleaved", False), "glm-moe-dsa-shared-indices", {}),
    (_with("attention_chunk_size", 4096), "llama4", {}),
    (_with("attention_temperature_tuning", False), "llama4", {}),
    (_with("moe_apply_probs_on_input", False), "llama4", {}),
    (_take_gates_for_queries, "qwen3.5", {}),
    (_mix_up_sections("gated_delta_net", "query", "key"), "qwen3-next", {}),
    (_mix_up_sections("gated_delta_net", "beta", "alpha"), "qwen3-next", {}),
    (_mix_up_sections("gated_delta_net", "query", "key"), "qwen3.5", {}),
    (_do_not_group_sections, "qwen3-next", {}),
    (_mix_up_sections("mamba", "z", "x"), "mamba2", {}),
    (_mix_up_sections("mamba", "B", "C"), "nemotron-h", {}),
    (_with("mamba_dt_min", 0.0), "nemotron-h", {}),
    (_with("layernorm_epsilon", 1e-2), "nemotron-3", {}),
    (_mix_up_sections("short_convolution", "B", "C"), "lfm2", {}),
    (_mix_up_sections("short_convolution", "C", "x"), "lfm2-moe", {"tp": 2}),
    (_turn_filters_around, "lfm2", {}),
    (_with("moe_router_renormalize", True), "lfm2-moe-tied-biases", {}),
    (_forget("router_bias"), "lfm2-moe", {}),
    (_with("softmax_scale", None), "falcon-h1", {}),
    (_with("ssm_multipliers", (1.0,) * 5), "falcon-h1", {"tp": 2}),
    (_with("mamba_norm_before_gate", False), "falcon-h1-norm-before-gate", {}),
    (_count_stored_experts_backwards, "qwen3-moe", {}),
    (_count_stored_experts_backwards, "qwen3-moe", {"ep": 2, "etp": 1}),
    (_swap_gate_and_up, "qwen2-moe", {}),
    (_forget("router_bias"), "deepseek-v3", {}),
    (_forget("shared"), "dots1", {}),
    (_forget("shared_gate"), "qwen2-moe", {}),
    (_with("moe_shared_expert_gate", False), "qwen2-moe", {}),
    (_ROUTER, "mixtral", {}),
    (_ROUTER_BIAS, "glm4-moe", {}),
    (_SINKS, "gpt-oss", {}),
    (_LATENT_KV, "deepseek-v3", {}),
    (_LATENT_Q, "deepseek-v3", {}),
    (_swap_latent_norms, "deepseek-v3", {}),
]
PREDICTION_MUTATIONS: list[tuple[Callable[[MonkeyPatch], None], str]] = [
    (_shift_prediction_layer, "deepseek-v3"),
    (_shift_prediction_layer, "glm4-moe"),
    (_swap_prediction_norms, "deepseek-v3"),
    (_swap_prediction_norms, "glm4-moe"),
    (_swap_inputs_of_the_projection, "deepseek-v3.2"),
    (_swap_inputs_of_the_projection, "qwen3.5"),
    (_read_the_last_norm_in_front, "qwen3.5"),
    (_with("dsa_indexer_topk", 13), "glm-moe-dsa"),
    (_with("layernorm_zero_centered_gamma", False), "qwen3.5"),
]


@pytest.mark.parametrize(("mutate", "name", "layout"), MUTATIONS, ids=[f"{m.__name__}-{n}" for m, n, _ in MUTATIONS])
def test_mutation_is_caught(
    mutate: Callable[[MonkeyPatch], None], name: str, layout: dict[str, Any], tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    mutate(monkeypatch)
    try:
        found = parity(TINY_MODELS[name], layout, tmp_path)
    except RankFailure as error:
        assert "PlanError" in str(error), "a mistake in the plan must be the plan's own error"
    else:
        assert not found.holds
        assert found.max_diff > 10 * found.tolerance


@pytest.mark.parametrize(
    ("mutate", "name"), PREDICTION_MUTATIONS, ids=[f"{m.__name__}-{n}" for m, n in PREDICTION_MUTATIONS]
)
def test_mutation_of_prediction_layers_is_caught(
    mutate: Callable[[MonkeyPatch], None], name: str, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    mutate(monkeypatch)
    try:
        found = prediction_parity(name, {}, tmp_path)
    except RankFailure as error:
        assert "PlanError" in str(error), "a mistake in the plan must be the plan's own error"
    else:
        assert found.max_diff > 10 * found.tolerance
