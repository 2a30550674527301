"""HunYuan V1 (dense)."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import HunYuanDenseV1Config


@MegatronModelBridge.register_bridge(
    source="HunYuanDenseV1ForCausalLM", target="GPTModel", model_type="hunyuan_v1_dense"
)
class HunYuanDenseV1Bridge(MegatronModelBridge):
    """Like Llama, with norms of q and k after the rotary embedding, whose base may be stretched by `alpha`."""

    CONFIG_MAPPING = {**MegatronModelBridge.CONFIG_MAPPING, **config_mapping.ATTENTION_BIAS}
    CONFIG_IRRELEVANT = config_mapping.not_read(
        "eod_token_id", "im_end_id", "im_newline_id", "im_start_id", "mask_init_id", "pad_id", "sep_token_id",
        "text_end_id", "text_start_id", "add_classification_head", "class_num", "dense_list", "pool_type",
        "attention_head_dim", "cla_share_factor", "mlp_bias", "norm_type", "org_vocab_size", "use_cla", "use_qk_norm",
        "use_rotary_pos_emb",
    )  # fmt: skip
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        "qk_layernorm": True,
        "qk_layernorm_scope": "head_after_rope",
    }

    def hf_config_to_provider_kwargs(self, hf_config: "HunYuanDenseV1Config") -> dict[str, Any]:
        fields = super().hf_config_to_provider_kwargs(hf_config)
        rope = fields["rope_parameters"]
        # What these checkpoints call dynamic does not depend on the length if it has an alpha.
        if rope["rope_type"] == "dynamic" and rope.get("alpha"):
            fields["rope_parameters"] = {**rope, "rope_type": "ntk_alpha"}
        return fields

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        values = super().megatron_to_hf_config(provider)
        rope = values["rope_parameters"]
        return values | ({"rope_parameters": {**rope, "rope_type": "dynamic"}} if "alpha" in rope else {})

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True, qk_norm_names=blocks.LONG_QK_NORM_NAMES),
            *blocks.gated_mlp(),
        )
