"""GLM-5."""

from megatron.bridge.models.conversion import fields
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.deepseek.deepseek_v32_bridge import DeepseekV32Bridge


@MegatronModelBridge.register_bridge(source="GlmMoeDsaForCausalLM", target="GPTModel", model_type="glm_moe_dsa")
class GlmMoeDsaBridge(DeepseekV32Bridge):
    """DeepSeek-V3.2 with interleaved rotary embeddings in the indexer, and indices that layers share."""

    CONFIG = (*DeepseekV32Bridge.CONFIG, *fields.SHARED_INDICES, fields.fixed(moe_router_dtype="float32"))
