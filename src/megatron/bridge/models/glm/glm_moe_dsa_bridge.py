"""GLM-5."""

from megatron.bridge.models.conversion.family import MegatronModelBridge, fields
from megatron.bridge.models.deepseek.deepseek_v32_bridge import DeepseekV32Bridge


@MegatronModelBridge.register_bridge(source="GlmMoeDsaForCausalLM", target="GPTModel", model_type="glm_moe_dsa")
class GlmMoeDsaBridge(DeepseekV32Bridge):
    """Like DeepSeek-V3.2, with an interleaved rotary embedding in the indexer, and layers that share indices."""

    CONFIG = (*DeepseekV32Bridge.CONFIG, *fields.SHARED_INDICES, fields.fixed(moe_router_dtype="float32"))
