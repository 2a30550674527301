"""Every decoder as a HybridModel: transformers' logits, the same export; checkpoints of any form in either class."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from megatron.bridge import AutoBridge
from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.inference.generate import generate_tokens
from megatron.bridge.inference.sampling import SamplingParams
from megatron.bridge.models.live_checkpoint import load_megatron_weights, save_megatron_model
from megatron.bridge.models.placement import read_placement
from megatron.bridge.models.stored_places import StoredPlaces
from tests.parity import LAYOUTS, build_on, changed_tensors, convert_and_run, parity, run_on
from tests.ranks import run_ranks
from tests.rounding import reference
from tests.tiny_models import ALL_MODELS, FIRST_VARIANTS, TINY_MODELS, TinyModel

FORMS: dict[str, dict[str, Any]] = {
    "split": {"model_class": "hybrid"},
    "whole": {"model_class": "hybrid", "hybrid_layers": "whole"},
}
LAYOUTS_OF_BOTH = {name: LAYOUTS[name] for name in ("tp1", "pp2", "tp2-sp")}
# Dense, experts, latent attention, and layers that hand on more than hidden states.
SHOWN = ("llama", "qwen3-moe", "deepseek-v3", "gemma4-everything")


def _cases() -> list[Any]:
    cases = []
    for name, layout in product(ALL_MODELS, [*LAYOUTS_OF_BOTH, "ep2"]):
        if layout == "ep2" and not ALL_MODELS[name].is_moe:
            continue
        marks = [] if name in SHOWN and layout == "pp2" else [pytest.mark.proof]
        cases.append(pytest.param(name, layout, marks=marks, id=f"{name}-{layout}"))
    return cases


@pytest.mark.parametrize(("name", "layout"), _cases())
def test_logits_and_export(name: str, layout: str, tmp_path: Path) -> None:
    tiny = ALL_MODELS[name]
    sizes = {"ep": 2, "etp": 1} if layout == "ep2" else LAYOUTS_OF_BOTH[layout]
    if tiny.is_moe and not tiny.splits_experts:
        sizes = {**sizes, "etp": 1}
    hf_model = tiny.save(tmp_path / "hf")
    shape = (2, tiny.seq_length)
    tokens = torch.randint(0, hf_model.config.vocab_size, shape, generator=torch.Generator().manual_seed(1))
    expected, tolerance = reference(hf_model, tokens)
    for rank in run_on(sizes, _run_both, tiny, tmp_path, tokens, sizes):
        for form, logits in rank.items():
            assert (logits - expected).abs().max() <= tolerance, form
    for form in FORMS:
        assert changed_tensors(tmp_path / "hf", tmp_path / form) == [], form


def _run_both(tiny: TinyModel, folder: Path, tokens: torch.Tensor, sizes: dict[str, Any]) -> dict[str, torch.Tensor]:
    options = {"trust_remote_code": tiny.trust_remote_code}
    return {
        form: convert_and_run(folder / "hf", tokens, {**sizes, **fields}, folder / form, **options)
        for form, fields in FORMS.items()
    }


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "deepseek-v3"])
def test_virtual_stages(name: str, tmp_path: Path) -> None:
    found = parity(TINY_MODELS[name], {"pp": 2, "vpp": 2, **FORMS["split"]}, tmp_path)
    assert found.holds


@pytest.mark.parametrize("name", FIRST_VARIANTS)
def test_names_are_those_of_a_gpt_model(name: str) -> None:
    """So no family, block or mapping knows the class."""
    bridge = AutoBridge.from_hf_config(TINY_MODELS[name].hf_config())
    found = []
    for form in ({}, *FORMS.values()):
        provider: Any = bridge.to_megatron_provider(load_weights=False)
        for field, value in form.items():
            setattr(provider, field, value)
        chunks = provider.provide_distributed_model(wrap_with_ddp=False, init_model_with_meta_device=True)
        found.append({(parameter.name, parameter.shape) for parameter in read_placement(chunks)})
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("llama", "model_class", "hybird"), ("llama", "hybrid_layers", "both"), ("nemotron-h", "model_class", "gpt")],
)
def test_a_class_that_cannot_be(name: str, field: str, value: str) -> None:
    bridge = AutoBridge.from_hf_config(TINY_MODELS[name].hf_config())
    provider = bridge.to_megatron_provider(load_weights=False)
    setattr(provider, field, value)
    with pytest.raises(UnsupportedConfigError, match=f"{field} must be .*, found '{value}'"):
        provider.finalize()


def test_more_layers_than_the_config_has_are_not_halves() -> None:
    provider = AutoBridge.from_hf_config(TINY_MODELS["llama"].hf_config()).to_megatron_provider(load_weights=False)
    provider.num_layers = 2
    parts = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")
    keys = [f"decoder.layers.{layer}.{part}" for layer in range(4) for part in parts]
    assert {name: place.key for name, place in StoredPlaces(keys, provider).places.items()} == {
        key: key for key in keys
    }
    halves = [f"decoder.layers.{layer}.{parts[layer % 2]}" for layer in range(4)]
    assert StoredPlaces(halves, provider).places["decoder.layers.1.mlp.linear_fc2.weight"].key == halves[3]


@pytest.mark.parametrize("name", ["llama", "deepseek-v3", "qwen3-moe"])
def test_generation_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    hf_model = TINY_MODELS[name].save(tmp_path)
    prompt = torch.arange(4, 14)[None]
    expected = hf_model.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :].tolist()
    for fields in ({}, *FORMS.values()):
        assert run_ranks(_generate, 1, tmp_path, prompt[0].tolist(), fields) == [expected], fields


def _generate(folder: Path, prompt: list[int], fields: dict[str, Any]) -> list[int]:
    model = build_on(AutoBridge.from_hf_pretrained(folder), fields)
    return list(generate_tokens(model, prompt, SamplingParams(max_new_tokens=8, temperature=0.0)))


PER_LAYER = {"non_homogeneous_layers": True}
SAVED: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "layer axis": ({}, None),
    "per layer": ({}, PER_LAYER),
    "split": (FORMS["split"], None),
    "whole": (FORMS["whole"], None),
}


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3-moe", "deepseek-v3", "qwen3-next"])
@pytest.mark.parametrize("layout", ["tp1", pytest.param("tp2-sp", marks=pytest.mark.proof)])
def test_checkpoints_of_any_form(name: str, layout: str, tmp_path: Path) -> None:
    """Saved by megatron-core in four forms at a layout; read into each class at another, and exported, bit for bit."""
    tiny = TINY_MODELS[name]
    tiny.save(tmp_path / "hf")
    run_on({**LAYOUTS[layout], "etp": 1} if tiny.is_moe else LAYOUTS[layout], _save, tiny, tmp_path, LAYOUTS[layout])
    run_ranks(_read, 2, tmp_path, pp=2)
    for form in SAVED:
        run_ranks(_export, 1, tmp_path, form)
        assert changed_tensors(tmp_path / "hf", tmp_path / f"export {form}") == [], form


def _save(tiny: TinyModel, folder: Path, layout: dict[str, Any]) -> None:
    bridge = AutoBridge.from_hf_pretrained(folder / "hf")
    for form, (fields, metadata) in SAVED.items():
        model = build_on(bridge, {**layout, **({"etp": 1} if tiny.is_moe else {}), **fields})
        saved = save_megatron_model(model, folder / form, hf_model_id=str(folder / "hf"))
        if metadata is not None:  # by plain megatron-core, in the place of what is there
            dist.barrier()
            if dist.get_rank() == 0:
                for path in (*saved.glob("*.distcp"), saved / ".metadata", saved / "metadata.json"):
                    path.unlink()
            dist.barrier()
            dist_checkpointing.save({"model": model[0].sharded_state_dict(metadata=metadata)}, str(saved))


def _read(folder: Path) -> None:
    bridge = AutoBridge.from_hf_pretrained(folder / "hf")
    for fields in ({}, *FORMS.values()):
        right = build_on(bridge, {"pp": 2, **fields})[0].state_dict()
        for form in SAVED:
            model = build_on(bridge, {"pp": 2, **fields})
            with torch.no_grad():
                for parameter in model[0].parameters():
                    parameter.fill_(-7)
            load_megatron_weights(model, folder / form)
            for key, value in model[0].state_dict().items():
                assert value is None or not torch.is_tensor(value) or torch.equal(value, right[key]), (form, key)


def _export(folder: Path, form: str) -> None:
    AutoBridge.from_hf_pretrained(folder / "hf").export_ckpt(folder / form, folder / f"export {form}")
