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
from megatron.bridge.errors import PlanError, UnsupportedConfigError
from tests.parity import Parity, build_on, changed_tensors, run_on
from tests.rounding import reference
from tests.tiny_models import TINY_MODELS, randomize

FAMILIES = ("deepseek-v3", "deepseek-v3.2", "glm4-moe", "glm-moe-dsa", "glm-moe-dsa-shared-indices")
# Families that store the layer in a module of its own, which the config of the first does not count.
MODULE_FAMILIES = ("qwen3-next", "qwen3.5", "qwen3.5-tied", "qwen3.5-moe", "qwen3.5-linear-last")
NORMS = ("enorm", "hnorm", "shared_head.norm")
MODULE_NORMS = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
LAYOUTS: dict[str, dict[str, Any]] = {"tp1": {}, "tp2-sp": {"tp": 2, "sequence_parallel": True}, "pp2": {"pp": 2}}
EXPERT_LAYOUTS: dict[str, dict[str, Any]] = {
    "ep2": {"ep": 2, "etp": 1},
    "tp2-ep2-sp": {"tp": 2, "ep": 2, "etp": 1, "sequence_parallel": True},
}
# Each on one layout in every run, on all as proofs.
CASES = [
    pytest.param(name, layout, id=f"{name}-{layout_name}", marks=[] if layout_name == shown else [pytest.mark.proof])
    for name in (*FAMILIES, *MODULE_FAMILIES)
    for layouts, shown in [
        (LAYOUTS | EXPERT_LAYOUTS, "tp2-ep2-sp") if TINY_MODELS[name].is_moe else (LAYOUTS, "tp2-sp")
    ]
    for layout_name, layout in layouts.items()
]


def save_with_prediction_layer(name: str, folder: Path, **config: Any) -> tuple[Any, MtpModel]:
    """Saves a tiny model with a random prediction layer, named as in the published checkpoints."""
    tiny = replace(TINY_MODELS[name], config={**TINY_MODELS[name].config, **config})
    model = tiny.save(folder)
    number, hidden = model.config.num_hidden_layers, model.config.hidden_size
    # One more layer of the main model, with attention, gives the published names of a prediction layer's tensors.
    more = {"num_hidden_layers": number + 1}
    if "layer_types" in tiny.config:
        more["layer_types"] = [*tiny.config["layer_types"], "full_attention"]
    if "indexer_types" in tiny.config:
        more["indexer_types"] = [*tiny.config["indexer_types"], "full"]
    replace(tiny, config={**tiny.config, **more}).save(folder / "longer", seed=5)
    tensors = load_file(folder / "model.safetensors")
    block = {k: v for k, v in load_file(folder / "longer" / "model.safetensors").items() if f".layers.{number}." in k}
    prefix, head, norms, projection = f"model.layers.{number}.", f"model.layers.{number}.", NORMS, "eh_proj"
    if name in MODULE_FAMILIES:
        prefix, head, norms, projection = "mtp.layers.0.", "mtp.", MODULE_NORMS, "fc"
        block = {k.replace(f"model.layers.{number}.", prefix): v for k, v in block.items()}
    generator = torch.Generator().manual_seed(6)
    around = tensors["model.norm.weight"].mean().round()  # 0 where norms are zero-centred
    block |= {f"{head}{norm}.weight": around + 0.2 * torch.randn(hidden, generator=generator) for norm in norms}
    block[f"{head}{projection}.weight"] = 0.08 * torch.randn(hidden, 2 * hidden, generator=generator)
    if name in FAMILIES:
        block[prefix + "embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
        block[prefix + "shared_head.head.weight"] = model.lm_head.weight.detach().clone()
        # transformers finds prediction layers by the names that it ignores otherwise, with the layer counts of real
        # models.
        model._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{number}\..*"]
    save_file({**tensors, **block}, folder / "model.safetensors", metadata={"format": "pt"})
    return model, _prediction_model(model, folder)


def _prediction_model(model: Any, folder: Path) -> MtpModel:
    """transformers' prediction model, of a layer with attention and experts, also where a config cannot say so."""
    model.config.name_or_path, model.config.dtype = str(folder), torch.float32
    for field, value in {"layer_types": "full_attention", "mlp_layer_types": "sparse"}.items():
        if hasattr(model.config, field):
            setattr(model.config, f"mtp_{field}", [value])
    model.config.num_mtp_layers = 1
    layers = model.model.layers  # the kind of the last one is that of the prediction layer
    model.model.layers = torch.nn.ModuleList([layer for layer in layers if hasattr(layer, "self_attn")])
    prediction = MtpModel.from_pretrained(model).float().eval()
    model.model.layers = layers
    # Layers that hand the choice of keys to others return a pair.
    prediction.layers[0].mtp_block.register_forward_hook(
        lambda module, args, output: output[0] if isinstance(output, tuple) else output
    )
    return prediction


@torch.no_grad()
def reference_logits(model: Any, prediction: MtpModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the token after the next one, `[B, S - 1, V]`."""
    # Of the whole length, like megatron-core's: keys of equal scores are chosen by where they stand among all.
    following = torch.nn.functional.pad(tokens[:, 1:], (0, 1))
    position_ids = torch.arange(1, tokens.shape[1] + 1)[None]
    hidden = model.model(tokens).last_hidden_state
    return model.lm_head(prediction.forward_layer(0, hidden, position_ids, None, input_ids=following))[:, :-1]


def _run(folder: Path, tokens: torch.Tensor, layout: dict[str, Any], save_to: Path) -> tuple[Any, torch.Tensor]:
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    from megatron.bridge.inference.full_logits import full_logits

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
    main, tolerance = reference(model, tokens)
    expected, of_prediction = reference(
        (model, prediction), tokens, lambda models, tokens: reference_logits(*models, tokens)
    )
    found = [result[:, :-1, : expected.shape[-1]] for result, _ in results if result is not None]
    assert found
    diffs = [(result - expected).abs().max() for result in found]
    diffs += [(logits - main).abs().max() for _, logits in results]
    max_diff = max(diff.item() for diff in diffs)
    changed = changed_tensors(folder / "hf", folder / "out")
    return Parity(max_diff, expected.abs().max().item(), changed, max(tolerance, of_prediction))


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_prediction_layer(name: str, layout: dict[str, Any], tmp_path: Path) -> None:
    found = prediction_parity(name, layout, tmp_path)
    assert found.changed == []
    assert found.max_diff <= found.tolerance


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
def test_prediction_layer_of_mimo(layout: dict[str, Any], tmp_path: Path) -> None:
    model = TINY_MODELS["mimo"].save(tmp_path / "hf")
    prediction = MiMoPrediction(model.config).eval()
    randomize(prediction, seed=5)
    path = tmp_path / "hf" / "model.safetensors"
    extra = {"model.mtp_layers.0." + k.removeprefix("layer."): v for k, v in prediction.state_dict().items()}
    save_file({**load_file(path), **extra}, path, metadata={"format": "pt"})
    tokens = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))
    results = run_on(layout, _run, tmp_path / "hf", tokens, layout, tmp_path / "out")

    def compute(models: Any, tokens: torch.Tensor) -> torch.Tensor:
        model, prediction = models
        hidden = model.model(tokens).last_hidden_state[:, :-1]
        angles = model.model.rotary_emb(hidden, torch.arange(tokens.shape[1] - 1)[None])
        return model.lm_head(prediction(model.model.embed_tokens(tokens[:, 1:]), hidden, angles))

    expected, tolerance = reference((model, prediction), tokens, compute)
    found = [result for result, _ in results if result is not None]
    assert found
    assert all((result[:, :-1, : expected.shape[-1]] - expected).abs().max() <= tolerance for result in found)
    main, tolerance = reference(model, tokens)
    assert all((logits - main).abs().max() <= tolerance for _, logits in results)
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


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v3.2", "glm-moe-dsa", "qwen3-next", "qwen3.5-moe"])
def test_switched_off(name: str, tmp_path: Path) -> None:
    model, _ = save_with_prediction_layer(name, tmp_path)
    bridge = AutoBridge.from_hf_pretrained(tmp_path)
    provider = bridge.to_megatron_provider(load_weights=False)
    assert provider.mtp_num_layers == 1
    provider.mtp_num_layers = None
    chunks = provider.provide_distributed_model(wrap_with_ddp=False)
    from megatron.bridge.models.conversion import weight_stream

    plan = weight_stream.load(bridge._model_bridge, bridge.hf_pretrained, chunks).plan
    prefixes = (f"model.layers.{model.config.num_hidden_layers}.", "mtp.")
    in_file = {name for name in load_file(tmp_path / "model.safetensors") if name.startswith(prefixes)}
    assert len(in_file) > 10
    dropped = {name: reason for name, reason in plan.dropped.items() if name.startswith(prefixes)}
    assert dropped.keys() == in_file
    assert {reason.split(" (")[0] for name, reason in dropped.items() if name not in plan.tied} == {
        "the Megatron model has no multi-token prediction layers"
    }
    assert dict(bridge.export_hf_weights(chunks)).keys() & in_file == set(plan.tied)


def test_absent_from_the_checkpoint(tmp_path: Path) -> None:
    """transformers writes no prediction layers, whatever its config says."""
    TINY_MODELS["glm4-moe"].save(tmp_path)
    bridge = AutoBridge.from_hf_pretrained(tmp_path)
    assert bridge.hf_pretrained.config.num_nextn_predict_layers == 1
    assert bridge.to_megatron_provider(load_weights=False).mtp_num_layers is None


def test_layers_without_a_description_are_dropped_with_a_reason(tmp_path: Path) -> None:
    model = TINY_MODELS["mimo-v2-flash"].save(tmp_path / "hf")
    path, hidden = tmp_path / "hf" / "model.safetensors", model.config.hidden_size
    extra = {
        "model.mtp.fc.weight": torch.ones(hidden, 2 * hidden),
        "model.mtp.layers.0.norm.weight": torch.ones(hidden),
    }
    save_file({**load_file(path), **extra}, path, metadata={"format": "pt"})
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf")
    bridge.export_ckpt(tmp_path / "megatron", tmp_path / "out")
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == sorted(extra)
    assert all("prediction" in (bridge._model_bridge.registry().drop_reason(tensor) or "") for tensor in extra)


@pytest.mark.parametrize("name", ["qwen3-next", "qwen3.5-moe", "glm-moe-dsa"])
def test_offline(name: str, tmp_path: Path) -> None:
    save_with_prediction_layer(name, tmp_path / "hf")
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    AutoBridge.from_hf_pretrained(tmp_path / "hf").export_ckpt(tmp_path / "megatron", tmp_path / "out")
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == []


def test_a_config_can_leave_out_the_module(tmp_path: Path) -> None:
    save_with_prediction_layer("qwen3.5", tmp_path / "hf")
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron", mtp_num_hidden_layers=0)
    bridge = AutoBridge.from_hf_pretrained(tmp_path / "hf", mtp_num_hidden_layers=0)
    bridge.export_ckpt(tmp_path / "megatron", tmp_path / "out")
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    assert changed_tensors(tmp_path / "hf", tmp_path / "out") == sorted(k for k in stored if k.startswith("mtp."))
    assert "prediction" in (bridge._model_bridge.registry().drop_reason("mtp.fc.weight") or "")


@pytest.mark.parametrize(("name", "expected"), [("qwen3-next", None), ("qwen3.5", 1), ("deepseek-v3.2", 1)])
def test_a_config_without_a_checkpoint(name: str, expected: int | None) -> None:
    bridge = AutoBridge.from_hf_config(TINY_MODELS[name].hf_config())
    assert bridge.to_megatron_provider(load_weights=False).mtp_num_layers == expected


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("qwen3.5", {"mtp_num_hidden_layers": 2}),
        ("qwen3.5", {"mtp_use_dedicated_embeddings": True}),
        ("glm-moe-dsa-shared-indices", {"num_nextn_predict_layers": 2}),
    ],
)
def test_what_cannot_be_represented(name: str, config: dict[str, Any]) -> None:
    tiny = replace(TINY_MODELS[name], config={**TINY_MODELS[name].config, **config})
    with pytest.raises(UnsupportedConfigError, match=next(iter(config))):
        AutoBridge.from_hf_config(tiny.hf_config()).to_megatron_provider(load_weights=False)


def test_an_unknown_tensor_of_the_module_is_found(tmp_path: Path) -> None:
    save_with_prediction_layer("qwen3.5", tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    save_file({**load_file(path), "mtp.fc.bias": torch.ones(64)}, path, metadata={"format": "pt"})
    with pytest.raises(PlanError, match=r"mtp\.fc\.bias \[64\]: no mapping reads it"):
        AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
