"""Multi-token prediction layers: loaded, computed as by transformers' `MtpModel`, exported, or left out on purpose."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.modeling_layers import MtpModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm

from megatron.bridge import AutoBridge
from tests.parity import TOLERANCE, Parity, build_on, changed_tensors, run_on
from tests.tiny_models import TINY_MODELS, randomize

FAMILIES = ("deepseek-v3", "glm4-moe")
NORMS = ("enorm", "hnorm", "shared_head.norm")
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp1": {},
    "tp2-sp": {"tp": 2, "sequence_parallel": True},
    "pp2": {"pp": 2},
    "ep2": {"ep": 2, "etp": 1},
    "tp2-ep2-sp": {"tp": 2, "ep": 2, "etp": 1, "sequence_parallel": True},
}


def save_with_prediction_layer(name: str, folder: Path, **config: Any) -> tuple[Any, MtpModel]:
    """Saves a tiny model with a random prediction layer, named as in the published checkpoints."""
    tiny = replace(TINY_MODELS[name], config={**TINY_MODELS[name].config, **config})
    model = tiny.save(folder)
    number = model.config.num_hidden_layers
    # One more layer of the main model gives the published names of a prediction layer's tensors.
    longer = replace(tiny, config={**tiny.config, "num_hidden_layers": number + 1})
    longer.save(folder / "longer", seed=5)
    tensors = load_file(folder / "model.safetensors")
    block = {k: v for k, v in load_file(folder / "longer" / "model.safetensors").items() if f".layers.{number}." in k}
    hidden = model.config.hidden_size
    generator = torch.Generator().manual_seed(6)
    prefix = f"model.layers.{number}."
    norms = {f"{prefix}{norm}.weight": 1 + 0.2 * torch.randn(hidden, generator=generator) for norm in NORMS}
    projection = {f"{prefix}eh_proj.weight": 0.08 * torch.randn(hidden, 2 * hidden, generator=generator)}
    tensors |= {**block, **norms, **projection}
    tensors[prefix + "embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[prefix + "shared_head.head.weight"] = model.lm_head.weight.detach().clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.name_or_path, model.config.dtype = str(folder), torch.float32
    # transformers finds prediction layers by the names that it ignores otherwise, with the layer counts of real models.
    model._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{number}\..*"]
    return model, MtpModel.from_pretrained(model).float().eval()


@torch.no_grad()
def reference_logits(model: Any, prediction: MtpModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the token after the next one, `[B, S - 1, V]`."""
    hidden = model.model(tokens).last_hidden_state[:, :-1]
    position_ids = torch.arange(1, tokens.shape[1])[None]
    return model.lm_head(prediction.forward_layer(0, hidden, position_ids, None, input_ids=tokens[:, 1:]))


def _run(folder: Path, tokens: torch.Tensor, layout: dict[str, Any], save_to: Path) -> tuple[Any, torch.Tensor]:
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    from megatron.bridge.models.forward import full_logits

    bridge = AutoBridge.from_hf_pretrained(folder)
    model = build_on(bridge, layout)
    assert model[0].config.mtp_num_layers == 1
    captured: list[torch.Tensor] = []
    if model[0].post_process:
        # megatron-core computes the prediction's logits first; its loss changes them in place.
        model[0].output_layer.register_forward_hook(lambda module, args, output: captured.append(output[0].clone()))
    logits = full_logits(model, tokens)
    bridge.save_hf_pretrained(model, save_to)
    prediction = gather_from_tensor_model_parallel_region(captured[0]).transpose(0, 1) if captured else None
    return prediction, logits


def prediction_parity(name: str, layout: dict[str, Any], folder: Path) -> Parity:
    """Compares the logits of a tiny model and of its prediction layer with transformers', and the export."""
    model, prediction = save_with_prediction_layer(name, folder / "hf")
    tokens = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))
    results = run_on(layout, _run, folder / "hf", tokens, layout, folder / "out")
    with torch.no_grad():
        main = model(tokens).logits
    expected = reference_logits(model, prediction, tokens)
    found = [result[:, :-1, : expected.shape[-1]] for result, _ in results if result is not None]
    assert found
    diffs = [(result - expected).abs().max() for result in found]
    diffs += [(logits - main).abs().max() for _, logits in results]
    max_diff = max(diff.item() for diff in diffs)
    changed = changed_tensors(folder / "hf", folder / "out")
    return Parity(max_diff, expected.abs().max().item(), changed, TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_prediction_layer(name: str, layout: dict[str, Any], tmp_path: Path) -> None:
    found = prediction_parity(name, layout, tmp_path)
    assert found.changed == []
    assert found.max_diff <= TOLERANCE


class MiMoPrediction(torch.nn.Module):
    """MiMo's prediction layer by its published description, made of transformers' modules: no library has it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.token_layernorm, self.hidden_layernorm, self.final_layernorm = (
            Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(3)
        )
        self.input_proj = torch.nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layer = Qwen2DecoderLayer(config, 0)

    def forward(self, embeddings: torch.Tensor, hidden: torch.Tensor, angles: Any) -> torch.Tensor:
        pair = torch.cat([self.hidden_layernorm(hidden), self.token_layernorm(embeddings)], dim=-1)
        length = hidden.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
        return self.final_layernorm(self.layer(self.input_proj(pair), attention_mask=mask, position_embeddings=angles))


@pytest.mark.parametrize("layout", [{}, {"tp": 2, "sequence_parallel": True}, {"pp": 2}], ids=["tp1", "tp2-sp", "pp2"])
@torch.no_grad()
def test_prediction_layer_of_mimo(layout: dict[str, Any], tmp_path: Path) -> None:
    model = TINY_MODELS["mimo"].save(tmp_path / "hf")
    prediction = MiMoPrediction(model.config).eval()
    randomize(prediction, seed=5)
    path = tmp_path / "hf" / "model.safetensors"
    extra = {"model.mtp_layers.0." + k.removeprefix("layer."): v for k, v in prediction.state_dict().items()}
    save_file({**load_file(path), **extra}, path, metadata={"format": "pt"})
    tokens = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))
    results = run_on(layout, _run, tmp_path / "hf", tokens, layout, tmp_path / "out")
    hidden = model.model(tokens).last_hidden_state[:, :-1]
    angles = model.model.rotary_emb(hidden, torch.arange(tokens.shape[1] - 1)[None])
    expected = model.lm_head(prediction(model.model.embed_tokens(tokens[:, 1:]), hidden, angles))
    found = [result for result, _ in results if result is not None]
    assert found
    assert all((result[:, :-1, : expected.shape[-1]] - expected).abs().max() <= TOLERANCE for result in found)
    assert all((logits - model(tokens).logits).abs().max() <= TOLERANCE for _, logits in results)
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == []


@pytest.mark.parametrize("distributed_save", [False, True])
def test_every_copy_of_a_tied_embedding_is_exported(distributed_save: bool, tmp_path: Path) -> None:
    """With tied embeddings the prediction layer stores two more copies of one tensor."""
    save_with_prediction_layer("glm4-moe", tmp_path / "hf", tie_word_embeddings=True)
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    model = bridge.to_megatron_provider().provide_distributed_model(wrap_with_ddp=False)
    source = load_file(tmp_path / "hf" / "model.safetensors")
    assert dict(bridge.export_hf_weights(model)).keys() == source.keys()
    head = f"model.layers.{bridge.hf_pretrained.config.num_hidden_layers}.shared_head.head.weight"
    assert [name for name, _ in bridge.export_hf_weights(model, select=lambda name: name == head)] == [head]
    bridge.save_hf_pretrained(model, tmp_path / "out", distributed_save=distributed_save)
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == []
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    bridge.export_ckpt(tmp_path / "megatron", tmp_path / "offline")
    assert changed_tensors(tmp_path / "hf", tmp_path / "offline") == []


def test_switched_off(tmp_path: Path) -> None:
    model, _ = save_with_prediction_layer("deepseek-v3", tmp_path)
    bridge = AutoBridge.from_hf_pretrained(tmp_path)
    provider = bridge.to_megatron_provider(load_weights=False)
    provider.mtp_num_layers = None
    chunks = provider.provide_distributed_model(wrap_with_ddp=False)
    from megatron.bridge.models.conversion import weight_stream

    plan = weight_stream.load(bridge._model_bridge, bridge.hf_pretrained, chunks).plan
    number = model.config.num_hidden_layers
    dropped = {name: reason for name, reason in plan.dropped.items() if f".layers.{number}." in name}
    in_file = {name for name in load_file(tmp_path / "model.safetensors") if f".layers.{number}." in name}
    assert dropped.keys() == in_file
    assert dropped[f"model.layers.{number}.eh_proj.weight"].startswith("the Megatron model has no multi-token")
    assert dict(bridge.export_hf_weights(chunks)).keys() & in_file == set(plan.tied)


def test_absent_from_the_checkpoint(tmp_path: Path) -> None:
    """transformers writes no prediction layers, whatever its config says."""
    TINY_MODELS["glm4-moe"].save(tmp_path)
    bridge = AutoBridge.from_hf_pretrained(tmp_path)
    assert bridge.hf_pretrained.config.num_nextn_predict_layers == 1
    assert bridge.to_megatron_provider(load_weights=False).mtp_num_layers is None


@pytest.mark.parametrize(("name", "hf"), [("qwen3-next", "mtp"), ("qwen3.5", "mtp"), ("mimo-v2-flash", "model.mtp")])
def test_layers_that_transformers_ignores_are_dropped_with_a_reason(name: str, hf: str, tmp_path: Path) -> None:
    model = TINY_MODELS[name].save(tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    hidden = model.config.hidden_size
    extra = {
        f"{hf}.fc.weight": torch.ones(hidden, 2 * hidden),
        f"{hf}.layers.0.input_layernorm.weight": torch.ones(hidden),
    }
    save_file({**tensors, **extra}, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    bridge.export_ckpt(tmp_path / "megatron", tmp_path / "out")
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == sorted(extra)
    assert all("prediction" in (bridge._model_bridge.registry().drop_reason(tensor) or "") for tensor in extra)
