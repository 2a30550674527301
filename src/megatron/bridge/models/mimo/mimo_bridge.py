"""MiMo."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.qwen.qwen2_bridge import Qwen2Bridge

if TYPE_CHECKING:
    from transformers import Qwen2Config


@MegatronModelBridge.register_bridge(
    source="MiMoForCausalLM", target="GPTModel", model_type="mimo", same_config={"mimo": "qwen2"}
)
class MiMoBridge(Qwen2Bridge):
    """Qwen2 with multi-token prediction layers, which the published code describes and transformers does not have."""

    CONFIG_CHECKED = (*Qwen2Bridge.CONFIG_CHECKED, "num_nextn_predict_layers")
    CONFIG_FIXED = {"attention_bias": True, "use_mrope": False}

    def hf_config_to_provider_kwargs(self, hf_config: "Qwen2Config") -> dict[str, Any]:
        return {**super().hf_config_to_provider_kwargs(hf_config), **moe_config.mtp_fields(hf_config)}

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        return {**super().megatron_to_hf_config(provider), **moe_config.mtp_values(provider)}

    def mapping_registry(self) -> MegatronMappingRegistry:
        hf = "model.mtp_layers.*"
        layer = [
            *blocks.pre_norms(hf=hf),
            *blocks.attention(hf=f"{hf}.self_attn", qkv_bias=True),
            *blocks.gated_mlp(hf=f"{hf}.mlp"),
        ]
        names = {
            "enorm": "token_layernorm",
            "hnorm": "hidden_layernorm",
            "eh_proj": "input_proj",
            "final_layernorm": "final_layernorm",
        }
        return MegatronMappingRegistry(
            *super().mapping_registry().entries,
            *blocks.multi_token_prediction(
                layer, self.hf_config, layers="mtp_layers", first=0, names=names, hidden_state_first=True
            ),
        )
