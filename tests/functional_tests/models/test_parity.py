"""Every family, on every layout: the logits of transformers, and the checkpoint back bit for bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron.bridge import AutoBridge
from tests.ranks import run_ranks
from tests.tiny_models import TINY_MODELS, TinyModel

LAYOUTS = {"tp1": {}, "tp2": {"tp": 2}, "pp2": {"pp": 2}, "tp2-sp": {"tp": 2, "sequence_parallel": True}}
TOLERANCE = 1e-5  # on logits of about 1 to 3


def _convert_and_run(folder: Path, tokens: torch.Tensor, layout: dict, save_to: Path) -> torch.Tensor:
    """On each rank: loads the model, computes logits, and saves it as an HF folder again."""
    from megatron.bridge.models.forward import full_logits

    bridge = AutoBridge.from_hf_pretrained(folder)
    provider = bridge.to_megatron_provider()
    provider.tensor_model_parallel_size = layout.get("tp", 1)
    provider.pipeline_model_parallel_size = layout.get("pp", 1)
    provider.sequence_parallel = layout.get("sequence_parallel", False)
    provider.finalize()
    model = provider.provide_distributed_model(wrap_with_ddp=False)
    logits = full_logits(model, tokens)
    bridge.save_hf_pretrained(model, save_to)
    return logits


@pytest.mark.parametrize("layout_name", LAYOUTS)
@pytest.mark.parametrize("tiny", TINY_MODELS.values(), ids=TINY_MODELS)
def test_logits_and_export(tiny: TinyModel, layout_name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[layout_name]
    hf_model = tiny.save(tmp_path / "hf")
    torch.manual_seed(1)
    tokens = torch.randint(0, hf_model.config.vocab_size, (2, tiny.seq_length))
    with torch.no_grad():
        reference = hf_model(tokens).logits
    sizes = {name: size for name, size in layout.items() if name in ("tp", "pp")}
    num_ranks = layout.get("tp", 1) * layout.get("pp", 1)
    results = run_ranks(_convert_and_run, num_ranks, tmp_path / "hf", tokens, layout, tmp_path / "out", **sizes)
    for logits in results:
        assert logits.shape == reference.shape
        assert (logits - reference).abs().max().item() <= TOLERANCE
    source = load_file(tmp_path / "hf" / "model.safetensors")
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert exported.keys() == source.keys()
    for name, tensor in source.items():
        assert exported[name].dtype == tensor.dtype and torch.equal(exported[name], tensor), name
