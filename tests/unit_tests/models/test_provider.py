"""Providers: deferred checks, hooks and wrapping."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron.bridge import AutoBridge
from megatron.bridge.errors import ParallelLayoutError, UnsupportedConfigError
from megatron.bridge.models.gpt_provider import padded_vocab_size
from megatron.bridge.models.model_building import unwrap_model
from tests.functional_tests.test_multi_token_prediction import save_with_prediction_layer
from tests.ranks import run_ranks
from tests.tiny_models import TINY_MODELS


def provider_of(name: str) -> Any:
    return AutoBridge.from_hf_config(TINY_MODELS[name].hf_config()).to_megatron_provider(load_weights=False)


def test_fields_may_be_set_in_any_order_before_finalize() -> None:
    provider = provider_of("llama")
    provider.num_query_groups = 3  # would be refused together with 4 heads
    provider.num_query_groups = 4
    provider.finalize()
    provider.finalize()
    assert provider.kv_channels == 16


def test_megatron_core_checks_run_in_finalize() -> None:
    provider = provider_of("llama")
    provider.sequence_parallel = True
    provider.recompute_granularity = "everything"
    with pytest.raises(UnsupportedConfigError, match="megatron-core refuses"):
        provider.finalize()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("mixtral", {"moe_layer_freq": 0}, "moe_layer_freq must be at least 1"),
        ("gemma4-shared", {"num_kv_shared_layers": 9}, "num_kv_shared_layers is 9 of 6"),
        ("gemma4-shared", {"num_kv_shared_layers": 5}, "num_kv_shared_layers is 5 of 6"),
        (
            "ministral3",
            {"rope_parameters": {"rope_type": "default"}},
            "must have llama_4_scaling_beta and original_max",
        ),
    ],
)
def test_values_that_no_layer_can_be_built_with(name: str, fields: dict[str, Any], message: str) -> None:
    provider = provider_of(name)
    vars(provider).update(fields)
    with pytest.raises(UnsupportedConfigError, match=message):
        provider.provide_distributed_model(wrap_with_ddp=False, init_model_with_meta_device=True)


def test_every_second_layer_has_experts() -> None:
    """A period as megatron-core has it; HF configs list the layers."""
    bridge = AutoBridge.from_hf_config(TINY_MODELS["qwen3-moe"].hf_config())
    provider = bridge.to_megatron_provider(load_weights=False)
    provider.moe_layer_freq = 2
    assert bridge._model_bridge.megatron_to_hf_config(provider)["mlp_only_layers"] == [1, 3]


def test_unknown_scope_of_norms() -> None:
    provider = provider_of("qwen3")
    provider.qk_layernorm_scope = "heads"
    with pytest.raises(UnsupportedConfigError, match=r"must be one of head, projection.* found 'heads'"):
        provider.finalize()


def test_heads_of_layers_with_a_window_on_ranks() -> None:
    provider = provider_of("mimo-v2-flash")
    assert [provider.layer_config(number).num_query_groups for number in (1, 2, 3, 4)] == [2, 4, 4, 4]
    provider.window_attention["num_query_groups"] = 1
    provider.tensor_model_parallel_size = 2
    with pytest.raises(ParallelLayoutError, match="num_query_groups of layers with a window is 1"):
        provider.finalize()
    provider.tensor_model_parallel_size = 4
    provider.pad_query_groups = True
    with pytest.raises(ParallelLayoutError, match="2 query groups cannot be padded for tensor_model_parallel_size 4"):
        provider.finalize()


def test_unknown_field_of_layers_with_a_window() -> None:
    provider = provider_of("mimo-v2-flash")
    provider.window_attention["num_key_value_heads"] = 4
    with pytest.raises(UnsupportedConfigError, match=r"may hold kv_channels, .* found .*'num_key_value_heads': 4"):
        provider.finalize()


def test_query_groups_of_two_kinds_of_layers_are_padded_alike_or_not_at_all() -> None:
    provider = provider_of("gemma4-keys-are-values")
    provider.tensor_model_parallel_size, provider.pad_query_groups = 8, True
    with pytest.raises(
        ParallelLayoutError, match=r"2 query groups cannot be padded for .* 8: layers with a sliding window have 4"
    ):
        provider.finalize()
    provider = provider_of("gemma4")
    provider.tensor_model_parallel_size, provider.pad_query_groups = 4, True
    provider.finalize()
    groups = [provider.layer_config(number).num_query_groups for number in (1, 2)]
    assert (groups, provider.num_attention_heads) == ([4, 4], 8)
    bridge = AutoBridge.from_hf_config(TINY_MODELS["gemma4"].hf_config())
    values = bridge._model_bridge.megatron_to_hf_config(provider)
    assert (values["num_key_value_heads"], values["num_attention_heads"]) == (2, 4)
    assert values["per_layer_config"] == {layer: {"head_dim": 32} for layer in (1, 3)}


def test_overrides_and_dtype() -> None:
    provider = provider_of("llama")
    provider.apply_overrides_and_finalize(dtype=torch.bfloat16, overrides={"attention_dropout": 0.1})
    assert provider.bf16 and provider.params_dtype == torch.bfloat16 and provider.attention_dropout == 0.1
    with pytest.raises(AttributeError, match="no field 'attention_dropuot'"):
        provider.apply_overrides_and_finalize(overrides={"attention_dropuot": 0.1})


def test_prediction_layers_on_the_first_rank_are_refused() -> None:
    """megatron-core would wait for ever while it makes the copies of the embedding alike."""
    provider = provider_of("deepseek-v3")
    provider.mtp_num_layers, provider.pipeline_model_parallel_size = 1, 2
    provider.pipeline_model_parallel_layout = [["embedding", "decoder"], ["decoder"] * 3, ["mtp"], ["loss"]]
    with pytest.raises(ParallelLayoutError, match="the first pipeline rank has prediction layers"):
        provider.finalize()


def test_hooks_run_in_order_and_may_return_nothing() -> None:
    provider = provider_of("llama")
    calls = []
    provider.register_pre_wrap_hook(lambda chunks: calls.append("first"))
    provider.register_pre_wrap_hook(lambda chunks: calls.append("second") or chunks)
    provider.register_pre_wrap_hook(lambda chunks: calls.append("before all"), prepend=True)
    provider.register_post_wrap_hook(lambda chunks: calls.append("after"))
    model = provider.provide_distributed_model(wrap_with_ddp=False)
    assert calls == ["before all", "first", "second", "after"]
    calls.clear()
    provider.provide_distributed_model(wrap_with_ddp=False, pre_wrap_hook=lambda chunks: calls.append("instead"))
    assert calls == ["instead", "after"]
    assert len(model) == 1


@pytest.mark.parametrize(
    ("name", "num_prediction_layers"),
    [("llama", 0), ("qwen3-moe", 0), ("qwen2-moe", 0), ("deepseek-v3", 1), ("nemotron-3", 0), ("gemma4-moe", 0)],
)
def test_process_groups_given_to_a_provider(name: str, num_prediction_layers: int, tmp_path: Path) -> None:
    """megatron-core makes deep copies of a config, in which process groups and hooks stay the same objects."""
    if num_prediction_layers:
        save_with_prediction_layer(name, tmp_path, num_nextn_predict_layers=num_prediction_layers)
    else:
        TINY_MODELS[name].save(tmp_path)
    assert run_ranks(_train_with_process_groups, 2, tmp_path, tp=2, etp=1) == [True, True]


def _train_with_process_groups(folder: Path) -> bool:
    from megatron.core.process_groups_config import ProcessGroupCollection

    groups = ProcessGroupCollection.use_mpu_process_groups()
    bridge = AutoBridge.from_hf_pretrained(folder)
    provider = bridge.to_megatron_provider()
    overrides = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "expert_tensor_parallel_size": 1}
    provider.apply_overrides_and_finalize(overrides=overrides)
    if provider.num_moe_experts is None:
        provider._pg_collection = groups
        model = provider.provide_distributed_model()
    else:
        model = provider.provide_distributed_model(pg_collection=groups)
    copied = copy.deepcopy(provider)
    assert copied._pg_collection is groups and copied._pre_wrap_hooks is provider._pre_wrap_hooks
    assert copied.rope_parameters is not provider.rope_parameters or provider.rope_parameters is None
    tokens = torch.arange(24)[None]
    model[0](tokens, tokens, None).float().mean().backward()
    exported = dict(bridge.export_hf_weights(model, cpu=True))
    source = load_file(folder / "model.safetensors")
    return all(torch.equal(exported[key], tensor) for key, tensor in source.items())


def test_wrapping() -> None:
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.transformer.module import Float16Module

    provider = provider_of("llama")
    provider.apply_overrides_and_finalize(dtype=torch.bfloat16)
    ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=True)
    model = provider.provide_distributed_model(ddp_config=ddp_config)
    assert isinstance(model[0], DistributedDataParallel) and isinstance(model[0].module, Float16Module)
    bare = unwrap_model(model)[0]
    assert bare is model[0].module.module
    assert all(parameter.dtype == torch.bfloat16 for parameter in bare.parameters())
    exported = dict(AutoBridge.from_hf_config(TINY_MODELS["llama"].hf_config()).export_hf_weights(model))
    assert torch.equal(exported["model.norm.weight"], bare.decoder.final_layernorm.weight)


def test_meta_device_takes_no_memory() -> None:
    provider = provider_of("qwen3")
    model = provider.provide_distributed_model(wrap_with_ddp=False, init_model_with_meta_device=True)
    assert {parameter.device.type for parameter in model[0].parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("vocab_size", "tp", "padded"), [(128, 1, 128), (128, 2, 128), (131, 1, 131), (131, 2, 132), (50257, 4, 50260)]
)
def test_vocabulary_padding(vocab_size: int, tp: int, padded: int) -> None:
    bridge = AutoBridge.from_hf_config(TINY_MODELS["llama"].hf_config())
    divisor = bridge._model_bridge.make_vocab_size_divisible_by(vocab_size)
    assert padded_vocab_size(vocab_size, divisor, tp) == padded


def test_tasks_are_the_public_contract() -> None:
    """What reinforcement-learning frameworks read from conversion tasks, and how they pass them back."""
    from dataclasses import replace

    bridge = AutoBridge.from_hf_config(TINY_MODELS["qwen3"].hf_config())
    model = bridge.to_megatron_model(load_weights=False, wrap_with_ddp=False)
    tasks = bridge.get_conversion_tasks(model)
    weights = dict(model[0].named_parameters())
    assert {task.param_name for task in tasks} == weights.keys()
    qkv = next(task for task in tasks if task.param_name == "decoder.layers.1.self_attention.linear_qkv.weight")
    assert qkv.global_param_name == qkv.param_name and (qkv.pp_rank, qkv.vp_stage) == (0, 0)
    assert qkv.megatron_module is model[0].decoder.layers[1].self_attention.linear_qkv
    assert qkv.param_weight is weights[qkv.param_name]
    assert qkv.mapping.hf_param["k"] == "model.layers.1.self_attn.k_proj.weight"

    class Lazy:
        """Iterable once, without indexing, with gaps and with weights made on access."""

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Any:
            yield None
            yield replace(qkv, param_weight=torch.full_like(qkv.param_weight, 7))

    exported = dict(bridge.export_hf_weights(model, conversion_tasks=Lazy()))
    assert exported.keys() == set(qkv.mapping.hf_param.values())
    assert all((tensor == 7).all() for tensor in exported.values())


def test_the_rope_base_is_stated_once() -> None:
    """`rotary_base` counts for every kind of rope; another base among the rope parameters is refused."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    provider = provider_of("llama")
    provider.rope_parameters, provider.rotary_base, provider.rotary_percent = yarn, 5e5, 0.5
    provider.finalize()
    assert provider.whole_rope_parameters(False) == {**yarn, "rope_theta": 5e5, "partial_rotary_factor": 0.5}
    provider.rope_parameters = {**yarn, "rope_theta": 1e4}
    with pytest.raises(UnsupportedConfigError, match=r"rope_theta 10000\.0, but rotary_base is 500000\.0"):
        provider.finalize()
