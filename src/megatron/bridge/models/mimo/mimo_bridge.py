"""MiMo."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.qwen.qwen2_bridge import Qwen2Bridge


@MegatronModelBridge.register_bridge(
    source="MiMoForCausalLM", target="GPTModel", model_type="mimo", same_config={"mimo": "qwen2"}
)
class MiMoBridge(Qwen2Bridge):
    """Like Qwen2, with prediction layers, which the published code has and transformers lacks."""

    CONFIG = (*Qwen2Bridge.CONFIG, fields.PREDICTION_LAYERS, fields.fixed(attention_bias=True, use_mrope=False))

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
