"""DeepSeek-V3.2."""

from megatron.bridge.models.conversion.family import MegatronModelBridge, blocks, fields
from megatron.bridge.models.deepseek.deepseek_v3_bridge import DeepseekV3Bridge


@MegatronModelBridge.register_bridge(source="DeepseekV32ForCausalLM", target="GPTModel", model_type="deepseek_v32")
class DeepseekV32Bridge(DeepseekV3Bridge):
    """Like DeepSeek-V3, with sparse attention, and a list that says which layers have experts."""

    CONFIG = (
        *DeepseekV3Bridge.CONFIG,
        *fields.SPARSE_ATTENTION,
        fields.expert_layers("first_k_dense_replace", "mlp_layer_types", "n_shared_experts"),
        fields.fixed(mlp_bias=False),
    )

    def attention_mappings(self) -> blocks.Mappings:
        return [*super().attention_mappings(), *blocks.attention_indexer()]
