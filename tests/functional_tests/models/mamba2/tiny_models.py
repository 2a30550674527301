"""Tiny models of Mamba-2."""

from tests.tiny_model import TinyModel

_MAMBA2 = {"state_size": 16, "num_heads": 16, "head_dim": 8, "n_groups": 2, "chunk_size": 16}
_MAMBA2_VARIANT = {"tie_word_embeddings": True, "time_step_limit": (0.5, float("inf"))}

MAMBA2_MODELS = (
    TinyModel("mamba2", "Mamba2ForCausalLM", _MAMBA2),
    TinyModel("mamba2-tied-step-limit", "Mamba2ForCausalLM", {**_MAMBA2, **_MAMBA2_VARIANT}),
)
TINY_MODELS = MAMBA2_MODELS
