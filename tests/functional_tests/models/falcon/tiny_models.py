"""Tiny models of Falcon-H1."""

from tests.tiny_model import TinyModel

_FALCON_H1 = {
    "mamba_d_ssm": 128, "mamba_n_heads": 16, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 16,
    "mamba_chunk_size": 16, "attention_in_multiplier": 1.3, "attention_out_multiplier": 0.8, "key_multiplier": 0.6,
    "ssm_in_multiplier": 1.2, "ssm_out_multiplier": 0.7, "ssm_multipliers": [0.8, 1.1, 1.4, 0.9, 1.6],
    "mlp_multipliers": [0.9, 1.2], "embedding_multiplier": 5.0, "lm_head_multiplier": 1.5,
}  # fmt: skip
_FALCON_H1_NORM = {"mamba_rms_norm": True, "tie_word_embeddings": True, "time_step_limit": (0.5, float("inf"))}

FALCON_H1_MODELS = (
    TinyModel("falcon-h1", "FalconH1ForCausalLM", {**_FALCON_H1, "head_dim": 24}),
    TinyModel("falcon-h1-norm-before-gate", "FalconH1ForCausalLM", {**_FALCON_H1, **_FALCON_H1_NORM}),
    TinyModel(
        "falcon-h1-norm", "FalconH1ForCausalLM", {**_FALCON_H1, "mamba_rms_norm": True, "mamba_norm_before_gate": False}
    ),
)
TINY_MODELS = FALCON_H1_MODELS
