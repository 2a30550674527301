"""Mixtral."""

from megatron.bridge.models.conversion import blocks, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge


@MegatronModelBridge.register_bridge(source="MixtralForCausalLM", target="GPTModel", model_type="mixtral")
class MixtralBridge(MegatronModelBridge):
    """Mistral with experts in place of every MLP; the router takes the softmax of the chosen experts."""

    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        "intermediate_size": "moe_ffn_hidden_size",
        "num_local_experts": "num_moe_experts",
        "num_experts_per_tok": "moe_router_topk",
        "router_aux_loss_coef": "moe_aux_loss_coeff",
    }
    CONFIG_CHECKED = (*MegatronModelBridge.CONFIG_CHECKED, "sliding_window")
    CONFIG_IRRELEVANT = {"router_jitter_noise": "training", "output_router_logits": "what the HF model returns"}
    CONFIG_DEFAULTS = {**MegatronModelBridge.CONFIG_DEFAULTS, **moe_config.MOE_DEFAULTS}

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(),
            *blocks.moe(hf=blocks.BLOCK_SPARSE_MOE, names=blocks.NUMBERED_EXPERT),
        )
