"""Models of Transformer Engine modules have other parameter names, which must resolve to the same HF tensors."""

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from tests.programs import TIMEOUT
from tests.tiny_models import FIRST_VARIANTS
from tests.transformer_engine_names import describe

# One variant of each architecture, and those whose modules differ from that one's.
OTHERS = (
    "llama-all-biases", "moonlight", "phi-tied-qk-norm", "stablelm-head-norms", "seed-oss-mlp-bias",
    "gemma4-everything", "gemma4-moe", "lfm2-tied-biases",
)  # fmt: skip
NAMES = sorted({*FIRST_VARIANTS, *OTHERS})

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def with_transformer_engine() -> Rows:
    """The weights of the models where Transformer Engine can run, by name; from a process of its own."""
    command = [sys.executable, "-m", "tests.transformer_engine_names", *NAMES]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_the_same_hf_tensors(name: str, with_transformer_engine: Rows) -> None:
    local = {row["global_name"]: row for row in describe(name)}
    found = {row["global_name"]: row for row in with_transformer_engine[name]}
    assert found.keys() == local.keys()
    num_weights = Counter(row["param_name"] for row in found.values())
    for weight, row in found.items():
        assert row["shape"] == local[weight]["shape"], weight
        assert row["hf_shapes"] == local[weight]["hf_shapes"], weight
        # The rule is found by the parameter's own name too, without its key in a checkpoint, if there is one rule: the
        # projection of a gated delta net is several weights.
        expected = sorted(row["hf_shapes"]) if num_weights[row["param_name"]] == 1 else None
        assert row["looked_up"] == expected, weight


LAYER = "decoder.layers.1."


@pytest.mark.parametrize(
    ("name", "fused", "hf"),
    [
        ("llama", "self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
        ("llama", "mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight"),
        ("starcoder2", "mlp.linear_fc1.layer_norm_bias", "post_attention_layernorm.bias"),
        ("qwen3", "self_attention.q_layernorm.weight", "self_attn.q_norm.weight"),
        ("qwen3-moe", "pre_mlp_layernorm.weight", "post_attention_layernorm.weight"),
        ("qwen3-moe", "mlp.experts.linear_fc2.weight3", "mlp.experts.3.down_proj.weight"),
        ("mixtral", "mlp.experts.linear_fc1.weight0", "block_sparse_moe.experts.0.w1.weight"),
        ("gpt-oss", "mlp.experts.linear_fc2.bias3", "mlp.experts.down_proj_bias"),
        ("gpt-oss", "self_attention.core_attention.softmax_offset", "self_attn.sinks"),
        ("mimo-v2-flash", "self_attention.core_attention.softmax_offset", "self_attn.attention_sink_bias"),
        ("deepseek-v3", "self_attention.linear_q_up_proj.layer_norm_weight", "self_attn.q_a_layernorm.weight"),
        ("deepseek-v3", "self_attention.linear_kv_up_proj.layer_norm_weight", "self_attn.kv_a_layernorm.weight"),
        ("deepseek-v3", "mlp.experts.linear_fc1.weight15", "mlp.experts.15.up_proj.weight"),
        ("deepseek-v3", "mlp.router.expert_bias", "mlp.gate.e_score_correction_bias"),
        ("lfm2-moe", "self_attention.in_proj.layer_norm_weight", "operator_norm.weight"),
        ("lfm2-moe", "self_attention.in_proj.weight", "conv.in_proj.weight"),
        ("lfm2-moe", "self_attention.conv1d.weight", "conv.conv.weight"),
    ],
)
def test_parameter_names(name: str, fused: str, hf: str, with_transformer_engine: Rows) -> None:
    """The modules are Transformer Engine's: fused norms and grouped experts, under the names that they have there."""
    rows = {row["param_name"]: row for row in with_transformer_engine[name]}
    assert f"model.layers.1.{hf}" in rows[LAYER + fused]["hf_shapes"]
