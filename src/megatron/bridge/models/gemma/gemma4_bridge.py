"""Gemma 4 (text)."""

from math import sqrt
from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks, config_mapping, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.param_mapping import AutoMapping
from megatron.bridge.models.gemma.gemma4_mappings import attention_without_own_values, experts, inputs_per_layer

if TYPE_CHECKING:
    from transformers import Gemma4TextConfig

# Fields that may differ between layers, so that transformers does not give them out for the whole model.
_PER_LAYER = ("head_dim", "num_key_value_heads")
# Fields that have the same names in the provider.
_SAME = (
    "num_kv_shared_layers",
    "use_double_wide_mlp",
    "hidden_size_per_layer_input",
    "vocab_size_per_layer_input",
)
# Fields that are read where `enable_moe_block` is set.
_MOE = {
    "num_experts": "num_moe_experts",
    "top_k_experts": "moe_router_topk",
    "moe_intermediate_size": "moe_ffn_hidden_size",
}


@MegatronModelBridge.register_bridge(source="Gemma4ForCausalLM", target="GPTModel", model_type="gemma4_text")
class Gemma4Bridge(MegatronModelBridge):
    """Gemma 3 with plain norms, norms of v, heads that differ between kinds of layers, and scaled layers.

    Layers may have embeddings of their own to read, use the keys and values of earlier ones, or have experts.
    """

    CONFIG_MAPPING = {
        **{name: field for name, field in config_mapping.DECODER_FIELDS.items() if name not in _PER_LAYER},
        **config_mapping.ATTENTION_BIAS,
        "final_logit_softcapping": "final_logit_softcapping",
        "attention_k_eq_v": "full_attention_k_eq_v",
        **{name: name for name in _SAME},
    }
    CONFIG_CHECKED = (
        *_PER_LAYER, *_MOE,
        "hidden_activation", "rope_parameters", "sliding_window", "layer_types", "per_layer_config",
        "use_bidirectional_attention", "enable_moe_block",
    )  # fmt: skip
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        "norm_weight_in_fp32": True,
        "use_post_norms": True,
        "qk_layernorm": True,
        "softmax_scale": 1.0,
    }
    PROVIDER_CLASS = "megatron.bridge.models.gemma.modeling_gemma4.Gemma4Provider"

    def hf_config_to_provider_kwargs(self, hf_config: "Gemma4TextConfig") -> dict[str, Any]:
        config_mapping.check_values(hf_config, self._where(hf_config), use_bidirectional_attention=(None,))
        heads: dict[str, set[tuple[int, int]]] = {"sliding_attention": set(), "full_attention": set()}
        for kind, layer in zip(hf_config.layer_types, hf_config.per_layer_config, strict=True):
            heads[kind].add((layer.head_dim, layer.num_key_value_heads))
        if {len(found) for found in heads.values()} != {1}:
            raise UnsupportedConfigError(
                f"{self._where(hf_config)}: expected one (head_dim, num_key_value_heads) for all layers of a kind, "
                f"found {heads}; per_layer_config may only change those of all layers with full_attention"
            )
        first_shared = hf_config.num_hidden_layers - hf_config.num_kv_shared_layers
        if set(hf_config.layer_types[:first_shared]) != set(hf_config.layer_types):
            raise UnsupportedConfigError(
                f"{self._where(hf_config)}: num_kv_shared_layers is {hf_config.num_kv_shared_layers}, but some of "
                f"these have no earlier layer of their kind to share with; layer_types: {hf_config.layer_types}"
            )
        (window,), (full,) = heads.values()
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            **(self._moe_fields(hf_config) if hf_config.enable_moe_block else {}),
            "embedding_multiplier": sqrt(hf_config.hidden_size),
            "kv_channels": full[0],
            "num_query_groups": full[1],
            "window_attention": {"kv_channels": window[0], "num_query_groups": window[1]},
        }

    def _moe_fields(self, hf_config: "Gemma4TextConfig") -> dict[str, Any]:
        missing = [name for name in _MOE if getattr(hf_config, name) is None]
        if missing:
            raise UnsupportedConfigError(f"{self._where(hf_config)}: enable_moe_block needs {', '.join(missing)}")
        return {
            **moe_config.MOE_DEFAULTS,
            **config_mapping.mapped_fields(hf_config, _MOE),
            "moe_router_pre_softmax": True,
            "moe_router_renormalize": True,
            "moe_shared_expert_intermediate_size": hf_config.intermediate_size,
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        window, full = provider.attention_config(True), provider.attention_config(False)
        values = {
            **super().megatron_to_hf_config(provider),
            "num_attention_heads": window.num_attention_heads // window.num_query_groups * window.num_hf_query_groups,
            "num_key_value_heads": window.num_hf_query_groups,
            "head_dim": window.kv_channels,
        }
        heads = {"head_dim": full.kv_channels, "num_key_value_heads": full.num_hf_query_groups}
        changed = {name: value for name, value in heads.items() if value != values[name]}
        kinds = enumerate(values["layer_types"])
        layers = {layer: changed for layer, kind in kinds if kind == "full_attention"}
        return {
            **values,
            **({} if provider.num_moe_experts is None else config_mapping.mapped_values(provider, _MOE)),
            "enable_moe_block": provider.num_moe_experts is not None,
            "per_layer_config": layers if changed else {},
        }

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        bias = config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(mlp=None if config.enable_moe_block else "pre_feedforward_layernorm"),
            *blocks.post_norms(),
            *attention_without_own_values(config),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True, heads_differ=True),
            *(experts() if config.enable_moe_block else blocks.gated_mlp()),
            *(inputs_per_layer() if config.hidden_size_per_layer_input else []),
            AutoMapping(f"{blocks.LAYER}.layer_scalar", f"{blocks.HF_LAYER}.layer_scalar"),
        )
