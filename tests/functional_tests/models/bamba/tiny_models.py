"""Tiny models of Bamba."""

from tests.tiny_model import TinyModel

_BAMBA = {
    "attn_layer_indices": [1, 2],
    "mamba_n_heads": 16,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}

BAMBA_MODELS = (TinyModel("bamba", "BambaForCausalLM", _BAMBA),)
TINY_MODELS = BAMBA_MODELS
