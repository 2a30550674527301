"""DeepSeek-V3 and R1, and the models of the same architecture: Kimi-K2, Moonlight."""

from typing import TYPE_CHECKING, Any, ClassVar

from megatron.bridge.models.conversion import blocks, mla_config, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import DeepseekV3Config


@MegatronModelBridge.register_bridge(
    source="DeepseekV3ForCausalLM",
    target="GPTModel",
    model_type="deepseek_v3",
    same_config={"kimi_k2": "deepseek_v3"},
)
class DeepseekV3Bridge(MegatronModelBridge):
    """Multi-latent attention, and experts chosen by biased sigmoid scores within the best groups of experts."""

    PROVIDER_CLASS = "megatron.bridge.models.mla_provider.MLAModelProvider"
    ROUTER_BIAS: ClassVar[str | None] = blocks.DEEPSEEK_ROUTER_BIAS
    CONFIG_MAPPING = {**mla_config.MLA_FIELDS, **moe_config.DEEPSEEK_FIELDS}
    CONFIG_CHECKED = (
        "hidden_act",
        "q_lora_rank",
        "num_nextn_predict_layers",
        *moe_config.EXPERT_LAYER_FIELDS,
        *moe_config.GROUPED_SIGMOID_FIELDS,
    )
    CONFIG_IRRELEVANT = {
        **mla_config.MLA_IRRELEVANT,
        "output_router_logits": "what the HF model returns",
        "seq_aux": "training",
        "aux_loss_alpha": "training",
        "ep_size": "another runtime's settings",
    }
    CONFIG_FIXED = {
        **mla_config.MLA_FIXED,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
    }
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        **moe_config.BIASED_ROUTER_DEFAULTS,
        "qk_layernorm": True,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "DeepseekV3Config") -> dict[str, Any]:
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            **mla_config.latent_attention_fields(hf_config, self._where(hf_config)),
            **moe_config.expert_layer_fields(hf_config),
            **moe_config.mtp_fields(hf_config),
            **self.router_fields(hf_config),
        }

    def router_fields(self, hf_config: Any) -> dict[str, Any]:
        """The provider fields of the router."""
        return moe_config.grouped_sigmoid_fields(hf_config)

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        mtp = moe_config.mtp_values(provider) if "num_nextn_predict_layers" in self.CONFIG_CHECKED else {}
        return {
            **super().megatron_to_hf_config(provider),
            **moe_config.expert_layer_values(provider, self.CONFIG_CHECKED),
            **self.router_values(provider),
            **mtp,
            "q_lora_rank": provider.q_lora_rank,
        }

    def router_values(self, provider: Any) -> dict[str, Any]:
        """The inverse of `router_fields`."""
        return moe_config.grouped_sigmoid_values(provider)

    def attention_mappings(self) -> blocks.Mappings:
        """The mappings of a layer's attention."""
        return blocks.latent_attention(q_latent=self.hf_config.q_lora_rank is not None)

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        layer = [
            *blocks.pre_norms(),
            *self.attention_mappings(),
            *blocks.moe(router_bias=self.ROUTER_BIAS, shared="shared_experts"),
        ]
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *layer,
            *blocks.gated_mlp(),
            *blocks.multi_token_prediction(layer, config),
        )
