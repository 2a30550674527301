"""Generation with Megatron models."""

from megatron.bridge.inference.generate import eos_token_ids, generate_batch, generate_text, generate_tokens
from megatron.bridge.inference.sampling import SamplingParams

__all__ = ["SamplingParams", "eos_token_ids", "generate_batch", "generate_text", "generate_tokens"]
