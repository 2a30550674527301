"""Tiny models of Seed-OSS."""

from tests.tiny_model import TinyModel

SEED_OSS_MODELS = (
    TinyModel("seed-oss", "SeedOssForCausalLM", {"head_dim": 24}),
    TinyModel("seed-oss-output-bias", "SeedOssForCausalLM", {"head_dim": 16, "attention_out_bias": True}),
    TinyModel("seed-oss-mlp-bias", "SeedOssForCausalLM", {"attention_bias": False, "mlp_bias": True}),
)
TINY_MODELS = SEED_OSS_MODELS
