"""Granite 3.x mixtures of experts."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.granite.granite_bridge import GRANITE, GraniteBridge


@MegatronModelBridge.register_bridge(source="GraniteMoeForCausalLM", target="GPTModel", model_type="granitemoe")
class GraniteMoeBridge(GraniteBridge):
    """Like Granite, with experts in every layer, stored as one tensor; the softmax is over the chosen experts."""

    CONFIG = (*GRANITE, fields.LOCAL_EXPERTS)

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias),
            *blocks.fused_moe(
                hf="model.layers.*.block_sparse_moe",
                router="router.layer",
                gate_up="input_linear.weight",
                down="output_linear.weight",
            ),
        )
