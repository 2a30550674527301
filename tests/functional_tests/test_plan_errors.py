"""Mistakes of the input: one complete error before anything is written or changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron.bridge import AutoBridge, BridgeError
from megatron.bridge.errors import ParallelLayoutError, PlanError, UnsupportedConfigError, UnsupportedModelError
from tests.ranks import RankFailure, run_ranks
from tests.tiny_models import TINY_MODELS

Tensors = dict[str, torch.Tensor]


def edit_tensors(folder: Path, edit: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def import_fails(folder: Path, error_class: type[BridgeError], *expected: str) -> str:
    """Imports must fail with one error that contains all of `expected`, and leave nothing behind."""
    before = sorted(folder.parent.iterdir())
    with pytest.raises(error_class) as caught:
        AutoBridge.import_ckpt(folder, folder.parent / "megatron")
    assert sorted(folder.parent.iterdir()) == before
    message = str(caught.value)
    for text in expected:
        assert text in message
    return message


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    TINY_MODELS["qwen3"].save(tmp_path / "hf")
    return tmp_path / "hf"


def test_missing_tensors_are_all_named(hf_folder: Path) -> None:
    lost = ["model.layers.1.mlp.up_proj.weight", "model.layers.3.self_attn.k_norm.weight", "lm_head.weight"]
    edit_tensors(hf_folder, lambda tensors: [tensors.pop(name) for name in lost])
    message = import_fails(hf_folder, PlanError, "3 problem(s)", str(hf_folder), *lost)
    assert "missing, needed by decoder.layers.1.mlp.linear_fc1.weight" in message


def test_unread_tensors_are_all_named(hf_folder: Path) -> None:
    extra = {
        "model.layers.0.self_attn.q_proj.bias": torch.zeros(96),
        "model.layers.4.mlp.up_proj.weight": torch.zeros(96, 64),
        "model.mystery.weight": torch.zeros(3),
    }
    edit_tensors(hf_folder, lambda tensors: tensors.update(extra))
    import_fails(hf_folder, PlanError, "3 problem(s)", "no mapping reads it", *extra)


def test_wrong_shapes_are_all_named(hf_folder: Path) -> None:
    def transpose(tensors: Tensors) -> None:
        for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.2.self_attn.v_proj.weight"):
            tensors[name] = tensors[name].T.contiguous()

    edit_tensors(hf_folder, transpose)
    import_fails(
        hf_folder,
        PlanError,
        "HF tensor model.layers.0.mlp.down_proj.weight: expected [64, 96]",
        "found [96, 64]",
        "HF tensor model.layers.2.self_attn.v_proj.weight: expected [48, 64]",
        "found [64, 48]",
    )


def test_unknown_architecture(hf_folder: Path) -> None:
    edit_config(hf_folder, architectures=["Qwen3ForSequenceClassification"])
    import_fails(hf_folder, UnsupportedModelError, "Qwen3ForSequenceClassification", "Qwen3ForCausalLM")
    assert not AutoBridge.can_handle(hf_folder)


def test_what_cannot_be_represented_is_said(hf_folder: Path) -> None:
    edit_config(hf_folder, architectures=["DeepseekV4ForCausalLM"])
    import_fails(hf_folder, UnsupportedModelError, "DeepseekV4ForCausalLM", "hyper-connections")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"hidden_act": "gelu_pytorch_tanh_quick"}, ("hidden_act", "gelu_pytorch_tanh_quick", "silu")),
        ({"residual_multiplier": 0.5}, ("residual_multiplier", "0.5")),
        (
            {"layer_types": ["chunked_attention"] * 4, "use_sliding_window": True, "sliding_window": 8},
            ("chunked_attention",),
        ),
        ({"rope_interleaved": True}, ("rope_interleaved", "expected False")),
    ],
)
def test_unsupported_config_values(values: dict[str, Any], expected: tuple[str, ...], hf_folder: Path) -> None:
    edit_config(hf_folder, **values)
    import_fails(hf_folder, UnsupportedConfigError, *expected)


def test_every_unknown_field_is_named(hf_folder: Path) -> None:
    edit_config(hf_folder, logit_scale=2.0, use_qk_norm=True)
    import_fails(hf_folder, UnsupportedConfigError, "logit_scale", "use_qk_norm")


def test_tensor_parallelism_must_divide_the_query_groups(hf_folder: Path) -> None:
    provider = AutoBridge.from_hf_pretrained(hf_folder).to_megatron_provider()
    provider.tensor_model_parallel_size = 4
    with pytest.raises(ParallelLayoutError, match="num_query_groups is 2"):
        provider.finalize()


def test_pipeline_parallelism_must_divide_the_layers(hf_folder: Path) -> None:
    provider = AutoBridge.from_hf_pretrained(hf_folder).to_megatron_provider()
    provider.pipeline_model_parallel_size = 3
    with pytest.raises(ParallelLayoutError, match="4 layers cannot be split over 3"):
        provider.finalize()


def test_more_ranks_than_there_are(hf_folder: Path) -> None:
    provider = AutoBridge.from_hf_pretrained(hf_folder).to_megatron_provider()
    provider.tensor_model_parallel_size = 2
    with pytest.raises(ParallelLayoutError):
        provider.provide_distributed_model(wrap_with_ddp=False)


def test_a_tied_head_with_other_values_is_refused(tmp_path: Path) -> None:
    TINY_MODELS["qwen3-tied"].save(tmp_path / "hf")
    edit_tensors(tmp_path / "hf", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    import_fails(tmp_path / "hf", PlanError, "lm_head.weight", "model.embed_tokens.weight", "tie_word_embeddings")


def test_a_tied_head_that_is_stored_twice_is_exported_twice(tmp_path: Path) -> None:
    TINY_MODELS["qwen3-tied"].save(tmp_path / "hf")
    edit_tensors(tmp_path / "hf", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    AutoBridge.from_hf_pretrained(tmp_path / "hf").export_ckpt(tmp_path / "megatron", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "hf" / "model.safetensors").read_bytes()


def test_old_checkpoints_with_rotary_frequencies(tmp_path: Path) -> None:
    TINY_MODELS["llama"].save(tmp_path / "hf")
    edit_tensors(tmp_path / "hf", lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")


def _build_with_an_empty_stage(folder: Path) -> None:
    provider = AutoBridge.from_hf_pretrained(folder).to_megatron_provider()
    provider.pipeline_model_parallel_size, provider.pipeline_model_parallel_layout = 2, "E|ttttttL"
    provider.provide_distributed_model(wrap_with_ddp=False)


def test_a_stage_without_layers_where_layers_hand_on_more_than_hidden_states(tmp_path: Path) -> None:
    TINY_MODELS["gemma4-e2b"].save(tmp_path)
    with pytest.raises(RankFailure, match=r"ParallelLayoutError: .* a pipeline stage has no layers"):
        run_ranks(_build_with_an_empty_stage, 2, tmp_path, pp=2)


def test_keys_and_values_that_layers_do_not_use(tmp_path: Path) -> None:
    """Published Gemma 4 checkpoints have them in layers that use those of earlier ones; transformers drops them."""
    TINY_MODELS["gemma4-e2b"].save(tmp_path / "hf")
    attention = "model.layers.5.self_attn"
    unused = {f"{attention}.k_proj.weight": torch.ones(64, 64), f"{attention}.k_norm.weight": torch.ones(32)}
    edit_tensors(tmp_path / "hf", lambda tensors: tensors.update(unused))
    AutoBridge.import_ckpt(tmp_path / "hf", tmp_path / "megatron")
    unread = {"model.layers.2.self_attn.k_norm.bias": torch.ones(16)}
    edit_tensors(tmp_path / "hf", lambda tensors: tensors.update(unread))
    import_fails(tmp_path / "hf", PlanError, "1 problem(s)", *unread)


def test_a_live_model_is_not_changed_by_a_checkpoint_that_does_not_fit(hf_folder: Path) -> None:
    bridge = AutoBridge.from_hf_pretrained(hf_folder)
    model = bridge.to_megatron_model(wrap_with_ddp=False)
    before = {name: parameter.clone() for name, parameter in model[0].named_parameters()}
    edit_tensors(hf_folder, lambda tensors: [tensors.pop("lm_head.weight"), tensors["model.norm.weight"].add_(1)])
    with pytest.raises(PlanError, match=r"lm_head\.weight"):
        bridge.load_hf_weights(model, hf_folder)
    assert all(torch.equal(before[name], parameter) for name, parameter in model[0].named_parameters())


def test_mismatched_parameters_may_be_allowed(hf_folder: Path) -> None:
    bridge = AutoBridge.from_hf_pretrained(hf_folder)
    model = bridge.to_megatron_model(wrap_with_ddp=False)
    edit_tensors(hf_folder, lambda tensors: [tensors.pop("lm_head.weight"), tensors["model.norm.weight"].add_(1)])
    head = model[0].output_layer.weight.clone()
    bridge.load_hf_weights(model, hf_folder, allowed_mismatched_params=["output_layer.weight"])
    assert torch.equal(model[0].output_layer.weight, head)
    expected = load_file(hf_folder / "model.safetensors")["model.norm.weight"]
    assert torch.equal(model[0].decoder.final_layernorm.weight, expected)


def test_the_output_must_be_new(hf_folder: Path) -> None:
    out = hf_folder.parent / "megatron"
    out.mkdir()
    (out / "something").write_text("precious")
    with pytest.raises(BridgeError, match="not empty"):
        AutoBridge.import_ckpt(hf_folder, out)
    assert (out / "something").read_text() == "precious"


def test_incomplete_exports_are_an_error(hf_folder: Path) -> None:
    """Tasks that a client splits wrongly do not lose weights silently."""
    from dataclasses import replace

    bridge = AutoBridge.from_hf_pretrained(hf_folder)
    model = bridge.to_megatron_model(wrap_with_ddp=False)
    tasks = bridge.get_conversion_tasks(model)
    task = next(task for task in tasks if task.global_param_name.endswith("linear_proj.weight"))
    half = replace(task, owners={((0, 32), (0, 96)): 0}, shards=(replace_box(task.shards[0], ((0, 32), (0, 96))),))
    with pytest.raises(PlanError, match=r"o_proj\.weight"):
        list(bridge.export_hf_weights(model, conversion_tasks=[half]))


def replace_box(shard: Any, box: Any) -> Any:
    from dataclasses import replace

    return replace(shard, box=box, local_box=box)
