"""Tiny models of gpt-oss."""

from tests.tiny_model import TinyModel, rope

_GPT_OSS = {
    "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 24, "sliding_window": 8,
    "swiglu_limit": 0.3,  # so small that it matters with these weights
}  # fmt: skip
_GPT_OSS_YARN = {"factor": 32.0, "beta_fast": 32.0, "truncate": False, "original_max_position_embeddings": 16}

GPT_OSS_MODELS = (
    TinyModel("gpt-oss", "GptOssForCausalLM", {**_GPT_OSS, **rope("yarn", **_GPT_OSS_YARN)}, splits_experts=False),
    TinyModel("gpt-oss-default-rope", "GptOssForCausalLM", {**_GPT_OSS, **rope("default")}, splits_experts=False),
)
TINY_MODELS = GPT_OSS_MODELS
