"""Apertus."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.param_mapping import AutoMapping

if TYPE_CHECKING:
    from transformers import ApertusConfig


@MegatronModelBridge.register_bridge(source="ApertusForCausalLM", target="GPTModel", model_type="apertus")
class ApertusBridge(MegatronModelBridge):
    """Norms of q and k, and an MLP of two layers whose activation is learned."""

    CONFIG_MAPPING = {**MegatronModelBridge.CONFIG_MAPPING, **config_mapping.ATTENTION_BIAS}
    CONFIG_CHECKED = ("rope_parameters",)
    CONFIG_IRRELEVANT = {
        "hidden_act": "checked to be xielu, which is a module of this family",
        **config_mapping.not_read("hidden_dropout", "mlp_bias", "post_norm", "qk_norm"),
    }
    CONFIG_DEFAULTS = {**MegatronModelBridge.CONFIG_DEFAULTS, "gated_linear_unit": False, "qk_layernorm": True}
    PROVIDER_CLASS = "megatron.bridge.models.apertus.modeling_apertus.ApertusProvider"

    def hf_config_to_provider_kwargs(self, hf_config: "ApertusConfig") -> dict[str, Any]:
        config_mapping.check_values(hf_config, self._where(hf_config), hidden_act=("xielu",))
        return super().hf_config_to_provider_kwargs(hf_config)

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {**super().megatron_to_hf_config(provider), "hidden_act": "xielu"}

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        xielu = [
            AutoMapping(f"{blocks.LAYER}.mlp.activation_func.{name}", f"model.layers.*.mlp.act_fn.{name}")
            for name in ("alpha_p", "alpha_n", "beta", "eps")
        ]
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(attention="attention_layernorm", mlp="feedforward_layernorm"),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True),
            *blocks.mlp(),
            *xielu,
        )
