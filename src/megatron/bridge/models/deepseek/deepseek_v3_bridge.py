"""DeepSeek-V3 and R1, and other models of the same architecture: Kimi-K2 and Moonlight."""

from typing import ClassVar

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields

DEEPSEEK = (
    *fields.LATENT_ATTENTION_DECODER,
    *fields.DEEPSEEK_SIZES,
    fields.irrelevant("training", "seq_aux", "aux_loss_alpha"),
    fields.irrelevant("another runtime's settings", "ep_size"),
)


@MegatronModelBridge.register_bridge(
    source="DeepseekV3ForCausalLM", target="GPTModel", model_type="deepseek_v3", same_config={"kimi_k2": "deepseek_v3"}
)
class DeepseekV3Bridge(MegatronModelBridge):
    """Multi-latent attention, and experts chosen by biased sigmoid scores from the best groups of experts."""

    PROVIDER_CLASS = "megatron.bridge.models.mla_provider.MLAModelProvider"
    ROUTER_BIAS: ClassVar[str | None] = "gate.e_score_correction_bias"
    CONFIG = (
        *DEEPSEEK,
        fields.EXPERT_LAYERS,
        fields.GROUPED_SIGMOID_ROUTER,
        fields.PREDICTION_LAYERS,
        fields.fixed(scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1),
    )

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
