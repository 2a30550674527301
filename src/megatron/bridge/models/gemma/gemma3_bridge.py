"""Gemma 3 (text)."""

from dataclasses import replace

from megatron.bridge.models.conversion.family import MegatronModelBridge, fields
from megatron.bridge.models.gemma.gemma2_bridge import Gemma2Bridge


@MegatronModelBridge.register_bridge(source="Gemma3ForCausalLM", target="GPTModel", model_type="gemma3_text")
class Gemma3Bridge(Gemma2Bridge):
    """Like Gemma 2, with norms of q and k instead of capped scores, and another rope in layers with a window."""

    CONFIG = (
        *Gemma2Bridge.CONFIG,
        fields.ROPE_BY_KIND,
        # transformers 5.23 does not pass the cap on to attention, whatever its value.
        replace(fields.same("attn_logit_softcapping"), fixed={"attn_logit_softcapping": None}),
        fields.turned_into("rope_parameters", "rope_local_base_freq"),
        fields.defaults(qk_layernorm=True),
    )
