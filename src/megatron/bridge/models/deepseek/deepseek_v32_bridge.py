"""DeepSeek-V3.2."""

from megatron.bridge.models.conversion import blocks, fields
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.deepseek.deepseek_v3_bridge import DeepseekV3Bridge


@MegatronModelBridge.register_bridge(source="DeepseekV32ForCausalLM", target="GPTModel", model_type="deepseek_v32")
class DeepseekV32Bridge(DeepseekV3Bridge):
    """DeepSeek-V3 with sparse attention, and a list of which layers have experts."""

    CONFIG = (
        *DeepseekV3Bridge.CONFIG,
        fields.expert_layers("first_k_dense_replace", "mlp_layer_types", "n_shared_experts"),
        fields.same(
            index_topk="dsa_indexer_topk", index_head_dim="dsa_indexer_head_dim", index_n_heads="dsa_indexer_n_heads"
        ),
        fields.irrelevant(layer_types="the kind of cache of each layer"),
        fields.fixed(mlp_bias=False),
        # The rotation of queries and keys alike makes them easier to store in FP8, and changes no score.
        fields.defaults(dsa_indexer_rotate_activation=False, dsa_indexer_k_norm_epsilon=1e-6),
        fields.defaults(experimental_attention_variant="dsa"),
    )

    def attention_mappings(self) -> blocks.Mappings:
        return [*super().attention_mappings(), *blocks.attention_indexer()]
