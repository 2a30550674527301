"""A given mask holds together with sliding windows: padded batches give transformers' logits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.bridge import AutoBridge
from tests.rounding import reference
from tests.tiny_models import TINY_MODELS


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma2", "gemma3", "cohere2", "mimo-v2-flash", "lfm2"])
def test_left_padding(name: str, tmp_path: Path) -> None:
    hf_model = TINY_MODELS[name].save(tmp_path)
    tokens = torch.randint(0, hf_model.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))
    is_real = torch.ones(2, 24, dtype=torch.long)
    is_real[1, :5] = 0
    positions = torch.arange(24).expand(2, -1)
    model = AutoBridge.from_hf_pretrained(tmp_path).to_megatron_model(wrap_with_ddp=False)[0].eval()
    causal = torch.ones(24, 24, dtype=torch.bool).triu(1)
    mask = causal | (is_real == 0)[:, None, None, :]  # true where nothing is seen

    def compute(hf_model: Any, tokens: torch.Tensor) -> torch.Tensor:
        return hf_model(tokens, attention_mask=is_real, position_ids=positions).logits[is_real == 1]

    expected, tolerance = reference(hf_model, tokens, compute)
    with torch.no_grad():
        found = model(tokens, positions, mask)[is_real == 1]
    assert (found[:, : expected.shape[-1]] - expected).abs().max() <= tolerance
