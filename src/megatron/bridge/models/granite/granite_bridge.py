"""Granite 3.x (dense)."""

from megatron.bridge.models.conversion.family import MegatronModelBridge, fields
from megatron.bridge.models.llama.llama_bridge import LlamaBridge

GRANITE = (
    *fields.DECODER,
    fields.ATTENTION_BIAS,
    fields.same("embedding_multiplier", "residual_multiplier", attention_multiplier="softmax_scale"),
    # 1 / (1 / x) is x up to rounding errors in the last digits.
    fields.converted("logits_scaling", "logits_multiplier", lambda x: 1 / x, lambda x: float(f"{1 / x:.14g}")),
)


@MegatronModelBridge.register_bridge(source="GraniteForCausalLM", target="GPTModel", model_type="granite")
class GraniteBridge(LlamaBridge):
    """Like Llama, with multipliers for embeddings, attention scores, residual additions and logits."""

    CONFIG = (*GRANITE, fields.same("mlp_bias"))
