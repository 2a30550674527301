"""Granite 3.x (dense)."""

from megatron.bridge.models.conversion import fields
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.llama.llama_bridge import LlamaBridge

GRANITE = (
    *fields.DECODER,
    fields.ATTENTION_BIAS,
    fields.same("embedding_multiplier", "residual_multiplier", attention_multiplier="softmax_scale"),
    fields.Part(
        reads=("logits_scaling",),
        to_provider=lambda hf_config: {"logits_multiplier": 1 / hf_config.logits_scaling},
        # 1 / (1 / x) is x but for the last digits, which no config has.
        to_hf=lambda provider: {"logits_scaling": float(f"{1 / provider.logits_multiplier:.14g}")},
    ),
)


@MegatronModelBridge.register_bridge(source="GraniteForCausalLM", target="GPTModel", model_type="granite")
class GraniteBridge(LlamaBridge):
    """Like Llama, with multipliers of embeddings, attention scores, residual additions and logits."""

    CONFIG = (*GRANITE, fields.same("mlp_bias"))
