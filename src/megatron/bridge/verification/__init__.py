"""Proofs: Megatron-Core computes the logits of transformers, and weights come back bit for bit."""

from megatron.bridge.inference.open_model import provider_for
from megatron.bridge.transport.parallel_sizes import ONE_RANK, ParallelLayout
from megatron.bridge.verification.checkpoints import Difference, Verification, verify_checkpoints
from megatron.bridge.verification.logits import (
    DEFAULT_PROMPT,
    LogitComparison,
    Reference,
    choose_tokens,
    compare_logits,
    compare_with,
    hf_reference,
)
from megatron.bridge.verification.round_trip import RoundTrip, compare_folders, compare_tensors, roundtrip

__all__ = [
    "DEFAULT_PROMPT",
    "ONE_RANK",
    "Difference",
    "LogitComparison",
    "ParallelLayout",
    "Reference",
    "RoundTrip",
    "Verification",
    "choose_tokens",
    "compare_folders",
    "compare_logits",
    "compare_tensors",
    "compare_with",
    "hf_reference",
    "provider_for",
    "roundtrip",
    "verify_checkpoints",
]
