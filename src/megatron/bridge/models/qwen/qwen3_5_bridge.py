"""Qwen3.5 (text)."""

from typing import ClassVar

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields


@MegatronModelBridge.register_bridge(source="Qwen3_5ForCausalLM", target="GPTModel", model_type="qwen3_5_text")
class Qwen3_5Bridge(MegatronModelBridge):
    """Gated delta nets, with gated attention instead in every few layers."""

    PROJECTIONS_BY_HEAD: ClassVar[bool] = False
    CONFIG = (
        *fields.DECODER,
        fields.PARTIAL_ROPE,
        fields.ATTENTION_BIAS,
        fields.GATED_DELTA_NET,
        fields.linear_attention(),
        fields.PREDICTION_MODULE,
        fields.turned_into("layer_types", "full_attention_interval"),
        fields.irrelevant("another runtime's settings", "mamba_ssm_dtype"),
        fields.fixed(attn_output_gate=True, mtp_use_dedicated_embeddings=False),
    )

    def layer_mappings(self) -> blocks.Mappings:
        """The mappings of a layer with attention."""
        bias = self.hf_config.attention_bias
        return [
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True, output_gate=True),
            *blocks.gated_mlp(),
        ]

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        # The published configs of Qwen3-Next lack the field, although the checkpoints have the layer.
        is_off = getattr(config, "mtp_num_hidden_layers", None) == 0
        layer = self.layer_mappings()
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=config.tie_word_embeddings),
            *layer,
            *blocks.gated_delta_net(config, fused_by_head=self.PROJECTIONS_BY_HEAD),
            *(blocks.no_multi_token_prediction() if is_off else blocks.prediction_module(layer)),
        )


@MegatronModelBridge.register_bridge(source="Qwen3_5MoeForCausalLM", target="GPTModel", model_type="qwen3_5_moe_text")
class Qwen3_5MoeBridge(Qwen3_5Bridge):
    """Like Qwen3.5, with experts, and a shared expert with a gate, in every layer."""

    CONFIG = (
        *Qwen3_5Bridge.CONFIG,
        fields.experts(),
        fields.same(shared_expert_intermediate_size="moe_shared_expert_intermediate_size"),
        fields.not_read("intermediate_size"),
        fields.defaults(moe_shared_expert_gate=True),
    )

    def layer_mappings(self) -> blocks.Mappings:
        return [*super().layer_mappings(), *blocks.moe(shared="shared_expert", shared_gate="shared_expert_gate")]
