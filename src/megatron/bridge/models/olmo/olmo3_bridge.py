"""OLMo 3."""

from megatron.bridge.models.conversion.family import MegatronModelBridge, fields
from megatron.bridge.models.olmo.olmo2_bridge import Olmo2Bridge


@MegatronModelBridge.register_bridge(source="Olmo3ForCausalLM", target="GPTModel", model_type="olmo3")
class Olmo3Bridge(Olmo2Bridge):
    """Like OLMo 2, with windows on three of four layers, whose rotary embedding is not scaled."""

    CONFIG = (*Olmo2Bridge.CONFIG, fields.ROPE_BY_KIND, fields.WINDOW_LAYERS)
