"""Qwen1.5 and Qwen2 mixtures of experts."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.qwen.qwen2_bridge import Qwen2Bridge


@MegatronModelBridge.register_bridge(source="Qwen2MoeForCausalLM", target="GPTModel", model_type="qwen2_moe")
class Qwen2MoeBridge(Qwen2Bridge):
    """Like Qwen2, with experts in some or all layers, and a shared expert with a gate."""

    CONFIG = (
        *fields.decoder(head_dim=None),
        fields.SWITCHED_WINDOW_LAYERS,
        fields.experts(),
        fields.SPARSE_STEPS,
        fields.same(shared_expert_intermediate_size="moe_shared_expert_intermediate_size", qkv_bias="add_qkv_bias"),
        fields.defaults(moe_shared_expert_gate=True, add_qkv_bias=True),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=self.hf_config.qkv_bias),
            *blocks.gated_mlp(),
            *blocks.moe(shared="shared_expert", shared_gate="shared_expert_gate"),
        )
