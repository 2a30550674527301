"""Every family against transformers, on the same device: logits in float32 and bfloat16, gradients, tokens, export."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from megatron.bridge import AutoBridge
from megatron.bridge.inference.full_logits import full_logits
from megatron.bridge.inference.generate import generate_tokens
from megatron.bridge.inference.sampling import SamplingParams
from megatron.bridge.runtime import capabilities
from tests import rounding
from tests.gradients import gradients_of, reference, size
from tests.parity import build_on, changed_tensors
from tests.tiny_models import TinyModel

NUM_NEW_TOKENS = 8


def float32(tiny: TinyModel) -> dict[str, Any]:
    """The largest difference of logits, tensors that the export changed, and how many greedy tokens are the same."""
    device = capabilities.device()
    with tempfile.TemporaryDirectory() as folder:
        hf_model = tiny.save(Path(folder)).to(device)
        tokens = _tokens(hf_model, tiny.seq_length)
        expected, allowed = rounding.reference(hf_model, tokens)
        new_tokens = _hf_new_tokens(hf_model, tokens[:1])
        bridge = AutoBridge.from_hf_pretrained(folder, trust_remote_code=tiny.trust_remote_code)
        model = build_on(bridge, {})
        difference = _max(full_logits(model, tokens) - expected)
        params = SamplingParams(max_new_tokens=NUM_NEW_TOKENS, temperature=0.0)
        found_tokens = list(generate_tokens(model, tokens[0].tolist(), params))
        bridge.save_hf_pretrained(model, Path(folder) / "export")
        changed = changed_tensors(Path(folder), Path(folder) / "export")
    return {
        "max_diff": difference,
        "tolerance": allowed,
        "scale": _max(expected),
        "changed": changed,
        "same_tokens": sum(a == b for a, b in zip(new_tokens, found_tokens, strict=True)),
        "passed": difference <= allowed and not changed and new_tokens == found_tokens,
    }


def gradients(tiny: TinyModel) -> dict[str, Any]:
    """The largest difference of a gradient, over the largest gradient of its tensor or 1, and of which tensor."""
    with tempfile.TemporaryDirectory() as folder:
        expected, allowed, inputs = reference(tiny, Path(folder), capabilities.device())
        fields = {"moe_aux_loss_coeff": 0.0, "hidden_dropout": 0.0, "attention_dropout": 0.0}
        found = gradients_of(Path(folder), *inputs, fields)
    off = {
        name: _max(found[name] - gradient) / size(gradient) if name in found else float("inf")
        for name, gradient in expected.items()
    }
    worst = max(off, key=lambda name: off[name])
    return {"max_diff": off[worst], "tolerance": allowed, "of": worst, "passed": off[worst] <= allowed}


def bfloat16(tiny: TinyModel) -> dict[str, Any]:
    """How far bfloat16 logits are from transformers' in float64 with the same weights, ours and transformers' own.

    Distances are relative: of all logits together, as lengths of vectors. Single logits of models with experts say
    little, as the router's rounding decides which experts a token sees.
    """
    with tempfile.TemporaryDirectory() as folder:
        hf_model = tiny.save(Path(folder), torch.bfloat16).to(capabilities.device())
        tokens = torch.cat(rounding.inputs_like(_tokens(hf_model, tiny.seq_length)))
        with torch.no_grad():
            theirs = hf_model(tokens).logits.double()
            with rounding.Float64():
                exact = rounding.in_float64(hf_model)(tokens).logits
        bridge = AutoBridge.from_hf_pretrained(folder, trust_remote_code=tiny.trust_remote_code)
        ours = full_logits(build_on(bridge, {}), tokens).double()
    our_distance, their_distance = (float((logits - exact).norm() / exact.norm()) for logits in (ours, theirs))
    return {"distance": our_distance, "hf_distance": their_distance, "passed": our_distance <= 2 * their_distance}


def _tokens(hf_model: Any, seq_length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, hf_model.config.vocab_size, (2, seq_length), generator=generator).to(hf_model.device)


def _hf_new_tokens(hf_model: Any, tokens: torch.Tensor) -> list[int]:
    from transformers import GenerationConfig

    hf_model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=NUM_NEW_TOKENS)
    output = hf_model.generate(tokens, attention_mask=torch.ones_like(tokens))
    new_tokens: list[int] = output[0, tokens.shape[1] :].tolist()
    return new_tokens


def _max(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max())
