"""Command R7B and Command A (Cohere 2)."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import Cohere2Config


@MegatronModelBridge.register_bridge(source="Cohere2ForCausalLM", target="GPTModel", model_type="cohere2")
class Cohere2Bridge(MegatronModelBridge):
    """Attention and MLP side by side behind one LayerNorm without bias; rope in layers with a window only."""

    CONFIG_MAPPING = {
        **config_mapping.decoder_fields(rms_norm_eps="layer_norm_eps"),
        **config_mapping.ATTENTION_BIAS,
        "logit_scale": "logits_multiplier",
    }
    CONFIG_CHECKED = (*MegatronModelBridge.CONFIG_CHECKED, "sliding_window", "layer_types")
    CONFIG_IRRELEVANT = config_mapping.not_read(
        "layer_switch", "order_of_interleaved_layers", "position_embedding_type", "rotary_pct",
        "use_embedding_sharing", "use_gated_activation", "use_parallel_block", "use_parallel_embedding",
    )  # fmt: skip
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        "normalization": "LayerNorm",
        "norm_bias": False,
        "parallel_attention_and_mlp": True,
        "rotary_interleaved": True,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "Cohere2Config") -> dict[str, Any]:
        fields = super().hf_config_to_provider_kwargs(hf_config)
        has_window = hf_config.sliding_window is not None
        no_rope = [int(kind == "full_attention" or not has_window) for kind in hf_config.layer_types]
        return {**fields, "no_rope_freq": no_rope}

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(mlp=None),
            *blocks.attention(qkv_bias=bias, output_bias=bias),
            *blocks.gated_mlp(),
        )
