"""Qwen3-Next."""

from megatron.bridge.models.conversion.family import MegatronModelBridge, fields
from megatron.bridge.models.qwen.qwen3_5_bridge import Qwen3_5MoeBridge


@MegatronModelBridge.register_bridge(source="Qwen3NextForCausalLM", target="GPTModel", model_type="qwen3_next")
class Qwen3NextBridge(Qwen3_5MoeBridge):
    """Like Qwen3.5's mixture, with dense layers among the others, and projections grouped by key head."""

    PROJECTIONS_BY_HEAD = True
    CONFIG = (*Qwen3_5MoeBridge.CONFIG, fields.same(intermediate_size="ffn_hidden_size"), fields.SPARSE_STEPS)
