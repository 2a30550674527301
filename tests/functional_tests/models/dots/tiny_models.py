"""Tiny models of dots.llm1."""

from tests.functional_tests.models.deepseek.tiny_models import GROUPED_SIGMOID
from tests.tiny_model import TinyModel

_DOTS1 = {**GROUPED_SIGMOID, "n_shared_experts": 2, "norm_topk_prob": True, "head_dim": 16}

DOTS1_MODELS = (
    TinyModel("dots1", "Dots1ForCausalLM", {**_DOTS1, "sliding_window": None}),
    TinyModel("dots1-attention-bias", "Dots1ForCausalLM", {**_DOTS1, "sliding_window": None, "attention_bias": True}),
    TinyModel("dots1-window", "Dots1ForCausalLM", {**_DOTS1, "sliding_window": 8, "max_window_layers": 2}),
)
TINY_MODELS = DOTS1_MODELS
