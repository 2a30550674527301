"""GLM-5."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import fields
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.deepseek.deepseek_v32_bridge import DeepseekV32Bridge

if TYPE_CHECKING:
    from transformers import GlmMoeDsaConfig


def indexer_types(num_layers: int, freq: int, offset: int) -> list[str]:
    """Which layers choose keys ("full"), and which take those of a layer before ("shared").

    Args:
        freq, offset: megatron-core's `dsa_indexer_topk_freq` and `dsa_indexer_skip_topk_offset`.
    """
    return ["shared" if max(layer - max(offset, 1), 0) % freq else "full" for layer in range(1, num_layers + 1)]


def _schedule(hf_config: "GlmMoeDsaConfig") -> dict[str, Any]:
    kinds, num_layers = list(hf_config.indexer_types or ()), hf_config.num_hidden_layers
    freq, offset = 1, 1
    if "shared" in kinds:  # after the last of those in front, the next one that is not shared tells how many share
        offset = kinds.index("shared")
        freq = [*kinds[offset:], "full"].index("full") + 1
    if indexer_types(num_layers, freq, offset) != kinds:
        raise UnsupportedConfigError(
            f"indexer_types {kinds} cannot be represented: megatron-core has one indexer "
            "every so many layers, after some in front that have one each"
        )
    num_prediction = getattr(hf_config, "num_nextn_predict_layers", None) or 0
    if "shared" in indexer_types(num_prediction, freq, offset):
        raise UnsupportedConfigError(
            f"num_nextn_predict_layers {num_prediction} cannot be represented: each "
            "prediction layer has an indexer, and megatron-core counts these layers like decoder layers, of which "
            f"only one in {freq} has one"
        )
    return {"dsa_indexer_topk_freq": freq, "dsa_indexer_skip_topk_offset": offset}


def _kinds_of_provider(provider: Any) -> dict[str, Any]:
    schedule = provider.dsa_indexer_topk_freq, provider.dsa_indexer_skip_topk_offset
    return {"indexer_types": indexer_types(provider.num_layers, *schedule)}


@MegatronModelBridge.register_bridge(source="GlmMoeDsaForCausalLM", target="GPTModel", model_type="glm_moe_dsa")
class GlmMoeDsaBridge(DeepseekV32Bridge):
    """DeepSeek-V3.2 with interleaved rotary embeddings in the indexer, and indices that layers share."""

    CONFIG = (
        *DeepseekV32Bridge.CONFIG,
        fields.Part(reads=("indexer_types",), to_provider=_schedule, to_hf=_kinds_of_provider),
        fields.irrelevant(
            index_topk_freq="transformers turns it into indexer_types",
            index_skip_topk_offset="transformers turns it into indexer_types",
            index_topk_pattern="transformers turns it into indexer_types",
            index_share_for_mtp_iteration="generation: runs of the prediction layer that share indices",
        ),
        fields.fixed(indexer_rope_interleave=True, moe_router_dtype="float32"),
        fields.defaults(dsa_indexer_rope_interleaved=True),
    )
