"""Nemotron-H's multi-token prediction layers, each of several layers: loaded, computed, exported, or left out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.bridge import AutoBridge
from tests.parity import build_on, changed_tensors, run_on
from tests.rounding import reference
from tests.tiny_models import TINY_MODELS, TinyModel

KINDS = ["full_attention", "moe"]
DEPTH = 2
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp1": {},
    "tp2-sp": {"tp": 2, "sequence_parallel": True},
    "pp2": {"pp": 2},
    "ep2": {"ep": 2, "etp": 1},
}


def _with(tiny: TinyModel, **config: Any) -> TinyModel:
    return replace(tiny, config={**tiny.config, **config})


def save_with_prediction_layers(folder: Path) -> tuple[Any, list[Any], list[dict[str, torch.Tensor]]]:
    """Saves a tiny model with random prediction layers.

    A prediction layer is what a model of these few layers is, final norm included, behind a projection of its own.

    Returns:
        The model; for each prediction layer that model of a few layers, and its norms and projection.
    """
    tiny = TINY_MODELS["nemotron-3-latent"]
    model = _with(tiny, num_nextn_predict_layers=DEPTH, mtp_layers_block_type=KINDS).save(folder)
    hidden = model.config.hidden_size
    tensors, inner_models, inputs = load_file(folder / "model.safetensors"), [], []
    for depth in range(DEPTH):
        place = folder / f"prediction{depth}"
        inner_models.append(_with(tiny, layers_block_type=KINDS).save(place, seed=5 + depth))
        generator = torch.Generator().manual_seed(depth)
        first, last = depth * len(KINDS), (depth + 1) * len(KINDS) - 1
        inputs.append(
            {
                "enorm": 1 + 0.2 * torch.randn(hidden, generator=generator),
                "hnorm": 1 + 0.2 * torch.randn(hidden, generator=generator),
                "eh_proj": 0.08 * torch.randn(hidden, 2 * hidden, generator=generator),
            }
        )
        tensors |= {f"mtp.layers.{first}.{name}.weight": value for name, value in inputs[-1].items()}
        for name, value in load_file(place / "model.safetensors").items():
            if name == "backbone.norm_f.weight":
                tensors[f"mtp.layers.{last}.final_layernorm.weight"] = value
            elif name.startswith("backbone.layers."):
                number, _, rest = name.removeprefix("backbone.layers.").partition(".")
                tensors[f"mtp.layers.{first + int(number)}.{rest}"] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return model, inner_models, inputs


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)


@torch.no_grad()
def reference_logits(model: Any, inner_models: list[Any], inputs: list[Any], tokens: torch.Tensor) -> list[Any]:
    """Logits of each depth, `[B, S - depth - 1, V]`."""
    eps, hidden, logits = model.config.layer_norm_epsilon, model.model(tokens).last_hidden_state, []
    for depth, (inner, given) in enumerate(zip(inner_models, inputs, strict=True)):
        given = {name: value.to(hidden.dtype) for name, value in given.items()}
        embeddings = model.get_input_embeddings()(tokens[:, depth + 1 :])
        parts = _norm(embeddings, given["enorm"], eps), _norm(hidden[:, :-1], given["hnorm"], eps)
        projected = torch.cat(parts, dim=-1) @ given["eh_proj"].T
        hidden = inner.model(inputs_embeds=projected).last_hidden_state
        logits.append(model.lm_head(hidden))
    return logits


def _run(folder: Path, tokens: torch.Tensor, layout: dict[str, Any], save_to: Path) -> tuple[list[Any], torch.Tensor]:
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    from megatron.bridge.inference.full_logits import full_logits

    bridge = AutoBridge.from_hf_pretrained(folder)
    model = build_on(bridge, layout)
    captured: list[torch.Tensor] = []
    if model[0].post_process:
        # megatron-core computes the predictions' logits first; its loss changes them in place.
        model[0].output_layer.register_forward_hook(lambda module, args, output: captured.append(output[0].clone()))
    logits = full_logits(model, tokens)
    bridge.save_hf_pretrained(model, save_to)
    return [gather_from_tensor_model_parallel_region(found).transpose(0, 1) for found in captured[:DEPTH]], logits


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_prediction_layers(layout: dict[str, Any], tmp_path: Path) -> None:
    model, inner_models, inputs = save_with_prediction_layers(tmp_path / "hf")
    tokens = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))
    results = run_on(layout, _run, tmp_path / "hf", tokens, layout, tmp_path / "out")
    main, tolerance = reference(model, tokens)
    assert all((logits - main).abs().max() <= tolerance for _, logits in results)
    found = [predictions for predictions, _ in results if predictions]
    assert found
    for depth in range(DEPTH):
        expected, tolerance = reference(
            (model, *inner_models),
            tokens,
            lambda models, tokens, depth=depth: reference_logits(models[0], models[1:], inputs, tokens)[depth],
        )
        for predictions in found:
            assert (predictions[depth][:, : -depth - 1, : expected.shape[-1]] - expected).abs().max() <= tolerance
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == []


def test_offline(tmp_path: Path) -> None:
    save_with_prediction_layers(tmp_path / "hf")
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    AutoBridge.from_hf_pretrained(tmp_path / "hf").export_ckpt(tmp_path / "megatron", tmp_path / "out")
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == []


def test_switched_off(tmp_path: Path) -> None:
    """As users do who train without them: both fields set to `None`."""
    save_with_prediction_layers(tmp_path)
    bridge = AutoBridge.from_hf_pretrained(tmp_path)
    provider = bridge.to_megatron_provider()
    provider.mtp_num_layers = provider.mtp_hybrid_override_pattern = None
    model = provider.provide_distributed_model(wrap_with_ddp=False)
    source = load_file(tmp_path / "model.safetensors").keys()
    assert dict(bridge.export_hf_weights(model)).keys() == {name for name in source if not name.startswith("mtp.")}
    reason = bridge._model_bridge.registry().drop_reason("mtp.layers.0.eh_proj.weight")
    assert "mtp_num_layers" in (reason or "")
