"""GLM-5."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.deepseek.deepseek_v32_bridge import DeepseekV32Bridge

if TYPE_CHECKING:
    from transformers import GlmMoeDsaConfig


def _indexer_types(num_layers: int, freq: int, offset: int) -> list[str]:
    """Which layers choose keys ("full"), and which take those of a layer before ("shared"), in megatron-core."""
    from megatron.core.transformer.experimental_attention_variant.dsa import is_dsa_skip_topk_layer

    return ["shared" if is_dsa_skip_topk_layer(1 + layer, offset, freq) else "full" for layer in range(num_layers)]


@MegatronModelBridge.register_bridge(source="GlmMoeDsaForCausalLM", target="GPTModel", model_type="glm_moe_dsa")
class GlmMoeDsaBridge(DeepseekV32Bridge):
    """DeepSeek-V3.2 with interleaved rotary embeddings in the indexer, and indices that layers share."""

    CONFIG_CHECKED = (*DeepseekV32Bridge.CONFIG_CHECKED, "indexer_types")
    CONFIG_IRRELEVANT = {
        **DeepseekV32Bridge.CONFIG_IRRELEVANT,
        "index_topk_freq": "transformers turns it into indexer_types",
        "index_skip_topk_offset": "transformers turns it into indexer_types",
        "index_topk_pattern": "transformers turns it into indexer_types",
        "index_share_for_mtp_iteration": "generation: runs of the prediction layer that share indices",
    }
    CONFIG_FIXED = {
        **DeepseekV32Bridge.CONFIG_FIXED,
        "indexer_rope_interleave": True,
        "moe_router_dtype": "float32",
    }
    CONFIG_DEFAULTS = {**DeepseekV32Bridge.CONFIG_DEFAULTS, "dsa_indexer_rope_interleaved": True}

    def hf_config_to_provider_kwargs(self, hf_config: "GlmMoeDsaConfig") -> dict[str, Any]:
        kinds, num_layers = list(hf_config.indexer_types), hf_config.num_hidden_layers
        schedules = ((freq, offset) for freq in range(1, num_layers + 1) for offset in range(1, num_layers + 1))
        found = next((pair for pair in schedules if _indexer_types(num_layers, *pair) == kinds), None)
        if found is None:
            raise UnsupportedConfigError(
                f"{self._where(hf_config)}: indexer_types {kinds} cannot be represented: megatron-core has one indexer "
                "every so many layers, after some in front that have one each"
            )
        num_prediction = getattr(hf_config, "num_nextn_predict_layers", None) or 0
        if "shared" in _indexer_types(num_prediction, *found):
            raise UnsupportedConfigError(
                f"{self._where(hf_config)}: num_nextn_predict_layers {num_prediction} cannot be represented: each "
                "prediction layer has an indexer, and megatron-core counts these layers like decoder layers, of which "
                f"only one in {found[0]} has one"
            )
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            "dsa_indexer_topk_freq": found[0],
            "dsa_indexer_skip_topk_offset": found[1],
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        freq, offset = provider.dsa_indexer_topk_freq, provider.dsa_indexer_skip_topk_offset
        return {
            **super().megatron_to_hf_config(provider),
            "indexer_types": _indexer_types(provider.num_layers, freq, offset),
        }
