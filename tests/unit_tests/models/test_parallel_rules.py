"""The rules of parallel sizes, compared with what megatron-core itself accepts."""

import dataclasses
from itertools import product
from typing import Any

import pytest
import torch
from megatron.core.models.hybrid import hybrid_layer_allocation
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import get_num_layers_to_build

from megatron.bridge import AutoBridge
from megatron.bridge.errors import BridgeError, ParallelLayoutError
from megatron.bridge.models.transformer.parallel_rules import layout_problems
from tests.ranks import run_ranks
from tests.tiny_models import TINY_MODELS

FIRST, LAST = "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage"
TP, EP, CP = (f"{kind}_parallel_size" for kind in ("tensor_model", "expert_model", "context"))
PP, VPP = "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"
EMBEDDING, LOSS = "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split"


def provider_of(name: str, **fields: Any) -> Any:
    provider = AutoBridge.from_hf_config(TINY_MODELS[name].hf_config()).to_megatron_provider(load_weights=False)
    for field, value in fields.items():
        setattr(provider, field, value)
    return provider


def megatron_core_accepts(fields: dict[str, Any]) -> bool:
    """Whether megatron-core's config and its split of the layers over stages are without errors and complete."""
    pp, vpp = fields[PP], fields[VPP]
    try:
        config = TransformerConfig(
            hidden_size=16, num_attention_heads=4, pipeline_dtype=torch.float32, overlap_p2p_comm=False, **fields
        )
        stages = product(range(pp), range(vpp) if vpp else [None])
        counts = [get_num_layers_to_build(config, vp_stage, pp_rank) for pp_rank, vp_stage in stages]
    except (AssertionError, ValueError):
        return False
    counted = bool(fields.get(EMBEDDING)) + bool(fields.get(LOSS))
    return sum(counts) == fields["num_layers"] and min(counts) >= (0 if counted else 1)


def test_pipeline_rules_are_those_of_megatron_core() -> None:
    accepted = 0
    ends = [(None, None), (1, None), (2, None), (None, 1), (2, 1), (3, 2), (4, 4)]
    for layers, pp, vpp, (first, last) in product(range(1, 10), range(1, 5), (None, 2), ends):
        fields = {"num_layers": layers, PP: pp, FIRST: first, LAST: last}
        fields[VPP] = vpp
        if pp == 1 and (vpp or (first and last)):  # megatron-core says so when it makes process groups, or never
            assert layout_problems(fields)
            continue
        is_accepted = megatron_core_accepts(fields)
        accepted += is_accepted
        assert is_accepted == (not layout_problems(fields)), fields
    assert accepted > 50
    for layers, pp, vpp, embedding, loss in product(range(1, 10), (2, 3, 4), (None, 2), (False, True), (False, True)):
        fields = {"num_layers": layers, PP: pp, EMBEDDING: embedding, LOSS: loss}
        fields[VPP] = vpp
        assert megatron_core_accepts(fields) == (not layout_problems(fields)), fields


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("qwen3-moe", {"num_moe_experts": 5, EP: 2}, r"\(ep\) 2 .*num_moe_experts is 5.* 1, 5$"),
        ("llama", {EP: 2}, r"\(ep\) is 2, but the model has no experts"),
        ("qwen3-moe", {"expert_tensor_parallel_size": 5}, r"\(etp\) 5 does not divide .*: moe_ffn_hidden_size is"),
        ("qwen3-moe", {TP: 2, "moe_ffn_hidden_size": 33}, r"\(etp, which is tp unless .*moe_ffn_hidden_size is 33"),
        ("llama", {TP: 0}, "tensor_model_parallel_size must be a whole number from 1, found 0"),
        ("llama", {TP: 8}, r"\(tp\) 8 .* num_query_groups is 2.*pad_query_groups"),
        ("llama", {PP: 3}, r"3 pipeline stages \(pp\) evenly"),
        ("llama", {VPP: 2}, r"\(vpp\) is 2, but there is one pipeline stage"),
        ("llama", {PP: 2, VPP: 4}, r"2 pipeline stages \(pp\) of 4 chunks each"),
        ("llama", {PP: 3, FIRST: 1, LAST: 2, VPP: 2}, "stages of 1, 2, 1 layers cannot be cut into 2 chunks"),
        ("llama", {PP: 3, FIRST: 1}, "the other 3 of 4 layers cannot be split over 2 stages"),
        ("llama", {PP: 2, FIRST: 9}, "4 layers leave -5 for the other 1 of 2 pipeline stages"),
        ("llama", {PP: 2, FIRST: 1, LOSS: True}, "cannot be set together with"),
        ("nemotron-h", {TP: 16}, "mamba_num_groups is 2"),
        ("nemotron-h", {PP: 2, "hybrid_layer_pattern": "M|*|-M"}, "has 3 parts, but pp 2"),
        ("nemotron-h", {PP: 2, FIRST: 1, "hybrid_layer_pattern": "M|*-M"}, "put | between its pipeline stages"),
        ("mamba2", {CP: 32}, r"\(cp\) 32 and tp 1 do not divide what they split: mamba_num_heads"),
        ("qwen3-next", {CP: 16}, r"\(cp\) 16 .* linear_num_key_heads is"),
    ],
)
def test_a_size_that_cannot_work_is_refused_by_name(name: str, fields: dict[str, Any], message: str) -> None:
    provider = provider_of(name, **fields)
    if "hybrid_layer_pattern" in fields:
        provider.num_layers = len(fields["hybrid_layer_pattern"].replace("|", ""))
    with pytest.raises(ParallelLayoutError, match=message):
        provider.finalize()


@pytest.mark.filterwarnings("ignore:Could not determine rank:UserWarning:megatron.core")  # to log for one of the ranks
@pytest.mark.parametrize("layout", ["E|ttx|L", "Et|tt|tt|L", "E|tttttt|L", [["embedding"], "decoder"]])
def test_a_layout_of_stages_that_cannot_work_is_a_named_error(layout: Any) -> None:
    provider = provider_of("llama", pipeline_model_parallel_size=3, pipeline_model_parallel_layout=layout)
    with pytest.raises(BridgeError, match="pipeline_model_parallel_layout"):
        provider.finalize()


def _segments(pattern: str, first: int | None, last: int | None) -> int:
    """The number of layers that megatron-core gives to this rank's stage."""
    from megatron.core import parallel_state

    group = parallel_state.get_pipeline_model_parallel_group()
    return len(hybrid_layer_allocation.select_pipeline_segment(pattern, group, None, first, last)[0])


@pytest.mark.parametrize(("pattern", "first"), [("M*M", 1), ("M*|M", None)])
def test_stages_of_a_hybrid_model(pattern: str, first: int | None) -> None:
    fields = {"num_layers": 3, PP: 2, "hybrid_layer_pattern": pattern, FIRST: first}
    assert not layout_problems(fields)
    assert sum(run_ranks(_segments, 2, pattern, first, None, pp=2)) == 3


def test_what_is_no_part_of_a_model_is_not_divided() -> None:
    """Fields that have megatron-core's defaults in every provider say nothing about a model without such layers."""
    fields = {field.name: field.default for field in dataclasses.fields(TransformerConfig)}
    assert not layout_problems({**fields, "num_layers": 2, "num_attention_heads": 64, TP: 64})
