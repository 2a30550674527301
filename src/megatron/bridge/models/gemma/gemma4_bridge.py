"""Gemma 4 (text, dense)."""

from math import sqrt
from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion import layout as layouts
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.param_mapping import AutoMapping, MegatronParamMapping

if TYPE_CHECKING:
    from transformers import Gemma4TextConfig

# Fields that may differ between layers, so that transformers does not give them out for the whole model.
_PER_LAYER = {"head_dim": "kv_channels", "num_key_value_heads": "num_query_groups"}
_OFF = "of a feature that is checked to be off"


@MegatronModelBridge.register_bridge(source="Gemma4ForCausalLM", target="GPTModel", model_type="gemma4_text")
class Gemma4Bridge(MegatronModelBridge):
    """Gemma 3 with plain norms, norms of v, heads that differ between kinds of layers, and scaled layers.

    Models with embeddings per layer, layers that share keys and values, or experts are refused.
    """

    CONFIG_MAPPING = {
        **{name: field for name, field in config_mapping.DECODER_FIELDS.items() if name not in _PER_LAYER},
        **config_mapping.ATTENTION_BIAS,
        "final_logit_softcapping": "final_logit_softcapping",
        "attention_k_eq_v": "full_attention_k_eq_v",
    }
    CONFIG_CHECKED = (
        *_PER_LAYER,
        "hidden_activation", "rope_parameters", "sliding_window", "layer_types", "per_layer_config",
        "use_bidirectional_attention", "hidden_size_per_layer_input", "num_kv_shared_layers", "enable_moe_block",
    )  # fmt: skip
    CONFIG_IRRELEVANT = {
        "vocab_size_per_layer_input": _OFF,
        "use_double_wide_mlp": _OFF,
        "num_experts": _OFF,
        "top_k_experts": _OFF,
        "moe_intermediate_size": _OFF,
    }
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        "norm_weight_in_fp32": True,
        "use_post_norms": True,
        "qk_layernorm": True,
        "softmax_scale": 1.0,
        "hetereogenous_dist_checkpoint": True,
    }
    PROVIDER_CLASS = "megatron.bridge.models.gemma.modeling_gemma4.Gemma4Provider"

    def hf_config_to_provider_kwargs(self, hf_config: "Gemma4TextConfig") -> dict[str, Any]:
        config_mapping.check_values(
            hf_config,
            self._where(hf_config),
            use_bidirectional_attention=(None,),
            hidden_size_per_layer_input=(0, None),
            num_kv_shared_layers=(0,),
            enable_moe_block=(False,),
        )
        heads: dict[str, set[tuple[int, int]]] = {"sliding_attention": set(), "full_attention": set()}
        for kind, layer in zip(hf_config.layer_types, hf_config.per_layer_config, strict=True):
            heads[kind].add((layer.head_dim, layer.num_key_value_heads))
        if {len(found) for found in heads.values()} != {1}:
            raise UnsupportedConfigError(
                f"{self._where(hf_config)}: expected one (head_dim, num_key_value_heads) for all layers of a kind, "
                f"found {heads}; per_layer_config may only change those of all layers with full_attention"
            )
        (window,), (full,) = heads.values()
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            "embedding_multiplier": sqrt(hf_config.hidden_size),
            "kv_channels": window[0],
            "num_query_groups": window[1],
            "full_kv_channels": full[0],
            "full_num_query_groups": full[1],
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        window_heads = {name: getattr(provider, field) for name, field in _PER_LAYER.items()}
        values = {**super().megatron_to_hf_config(provider), **window_heads}
        heads = {"head_dim": provider.full_kv_channels, "num_key_value_heads": provider.full_num_query_groups}
        changed = {name: value for name, value in heads.items() if value != values[name]}
        kinds = enumerate(values["layer_types"])
        layers = {layer: changed for layer, kind in kinds if kind == "full_attention"}
        return {**values, "per_layer_config": layers if changed else {}, "hidden_size_per_layer_input": 0}

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        bias = config.attention_bias
        full_layers = [layer for layer, kind in enumerate(config.layer_types) if kind == "full_attention"]
        roles = ("q", "k") if config.attention_k_eq_v else ("q", "k", "v")
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *blocks.pre_norms(mlp="pre_feedforward_layernorm"),
            *blocks.post_norms(),
            *(
                FullAttentionQKVMapping(layer, roles, kind)
                for layer in full_layers
                for kind in (("weight", "bias") if bias else ("weight",))
            ),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True),
            *blocks.gated_mlp(),
            AutoMapping(f"{blocks.LAYER}.layer_scalar", "model.layers.*.layer_scalar"),
        )


class FullAttentionQKVMapping(MegatronParamMapping):
    """`linear_qkv` of a layer with full attention: its own heads, and no rows of v where the values are the keys."""

    def __init__(self, layer: int, roles: tuple[str, ...], kind: str):
        names = {role: f"model.layers.{layer}.self_attn.{role}_proj.{kind}" for role in roles}
        super().__init__(f"decoder.layers.{layer}.self_attention.linear_qkv.{kind}", names)

    def layout(self, shape: layouts.Shape, config: Any) -> layouts.Layout:
        head_dim, num_groups = config.full_kv_channels, config.full_num_query_groups
        rows = dict.fromkeys(self.hf_names, head_dim) | {"q": config.num_attention_heads // num_groups * head_dim}
        return layouts.grouped_rows(shape, num_groups, rows)
