"""Tiny models of StableLM 2."""

from tests.tiny_model import TIED, TinyModel

STABLELM_MODELS = (
    TinyModel("stablelm", "StableLmForCausalLM"),
    TinyModel("stablelm-tied-parallel", "StableLmForCausalLM", {**TIED, "use_parallel_residual": True}),
    TinyModel("stablelm-head-norms", "StableLmForCausalLM", {"use_qkv_bias": True, "qk_layernorm": True}),
)
TINY_MODELS = STABLELM_MODELS
