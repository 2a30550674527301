"""Ministral 3 (text)."""

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.family import MegatronModelBridge, fields
from megatron.bridge.models.mistral.mistral_bridge import MistralBridge


def _check_rope(hf_config: fields.HFConfig) -> fields.Values:
    missing = {"llama_4_scaling_beta", "original_max_position_embeddings"} - (hf_config.rope_parameters or {}).keys()
    if missing:
        raise UnsupportedConfigError(
            f"rope_parameters must have {' and '.join(sorted(missing))}, by which the query is scaled"
        )
    return {}


@MegatronModelBridge.register_bridge(source="Ministral3ForCausalLM", target="GPTModel", model_type="ministral3")
class Ministral3Bridge(MistralBridge):
    """Like Mistral, with YaRN, and queries that are scaled by their position."""

    PROVIDER_CLASS = "megatron.bridge.models.mistral.modeling_ministral3.Ministral3Provider"
    CONFIG = (*MistralBridge.CONFIG, fields.Part(to_provider=_check_rope))
