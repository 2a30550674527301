"""Granite 3.x mixtures of experts."""

from megatron.bridge.models.conversion import blocks, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.granite.granite_bridge import GraniteBridge


@MegatronModelBridge.register_bridge(source="GraniteMoeForCausalLM", target="GPTModel", model_type="granitemoe")
class GraniteMoeBridge(GraniteBridge):
    """Granite with experts in every layer, stored as one tensor; the router takes the softmax of the chosen ones."""

    CONFIG_MAPPING = {
        **{hf: ours for hf, ours in GraniteBridge.CONFIG_MAPPING.items() if hf != "mlp_bias"},
        "intermediate_size": "moe_ffn_hidden_size",
        "num_local_experts": "num_moe_experts",
        "num_experts_per_tok": "moe_router_topk",
        "router_aux_loss_coef": "moe_aux_loss_coeff",
    }
    CONFIG_IRRELEVANT = {**GraniteBridge.CONFIG_IRRELEVANT, "output_router_logits": "what the HF model returns"}
    CONFIG_DEFAULTS = {**GraniteBridge.CONFIG_DEFAULTS, **moe_config.MOE_DEFAULTS}

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias),
            *blocks.fused_moe(
                hf=blocks.BLOCK_SPARSE_MOE,
                router="router.layer",
                gate_up="input_linear.weight",
                down="output_linear.weight",
            ),
        )
