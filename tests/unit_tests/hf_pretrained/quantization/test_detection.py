import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.bridge.errors import QuantizationError
from megatron.bridge.models.hf_pretrained.quantization.detection import detect
from tests.unit_tests.hf_pretrained.quantization import words  # noqa: F401 (adds its samples)
from tests.unit_tests.hf_pretrained.quantization.formats import (
    SAMPLES,
    Sample,
    Tensors,
    found_in,
    opened,
    sample,
    write,
)

PARTS = [(name, part) for name in SAMPLES for part in sample(name).stored]
# Parts without which the others mean the same, or, for groups of inputs, something else that looks as right.
OPTIONAL = {"layer.weight_format", "layer.g_idx", "layer.weight_g_idx"}


def test_every_sample_is_found_from_headers_alone(tmp_path: Path) -> None:
    for name in SAMPLES:
        made = sample(name)
        found = found_in(made.stored, made.config, tmp_path / name)
        assert not found.problems and not found.dropped
        (tensor,) = found.tensors.values()
        assert tensor.name == made.name and set(tensor.parts.values()) == set(made.stored)
        size = torch.Size(tensor.shape).numel()
        assert made.expected.numel() <= size < made.expected.numel() * 1.25


@pytest.mark.parametrize(("name", "part"), [pair for pair in PARTS if pair[1] not in OPTIONAL])
def test_a_part_that_is_absent_is_missed(name: str, part: str, tmp_path: Path) -> None:
    made = sample(name)
    del made.stored[part]
    with pytest.raises(QuantizationError, match=r"cannot be read as weights; nothing was loaded") as raised:
        opened(made, tmp_path)
    assert any(name in str(raised.value) for name in [part, *made.stored])


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_part_of_another_dtype_is_refused(name: str, part: str, tmp_path: Path) -> None:
    made = sample(name)
    made.stored[part] = torch.zeros(made.stored[part].shape, dtype=torch.float64)
    with pytest.raises(QuantizationError, match=r"layer\.|experts\."):
        opened(made, tmp_path)


def _is_plain_weight(name: str, part: str) -> bool:
    """Numbers of a byte each, whose shape is free: that a weight is short the model knows."""
    return part == sample(name).name and sample(name).stored[part].dtype != torch.uint8 and "mxfp4" not in name


@pytest.mark.parametrize(
    ("name", "part"), [(n, p) for n, p in PARTS if sample(n).stored[p].numel() > 1 and not _is_plain_weight(n, p)]
)
def test_a_part_that_is_cut_short_is_refused(name: str, part: str, tmp_path: Path) -> None:
    made = sample(name)
    made.stored[part] = made.stored[part][..., :-1]
    with pytest.raises(QuantizationError, match=r"layer\.|experts\."):
        opened(made, tmp_path)


def _change(name: str, value: Callable[[torch.Tensor], torch.Tensor] | torch.Tensor) -> Callable[[Sample], None]:
    def change(made: Sample) -> None:
        made.stored[name] = value if isinstance(value, torch.Tensor) else value(made.stored[name])

    return change


def _config(**values: Any) -> Callable[[Sample], None]:
    return lambda made: made.config.update(values)


def _weights(**values: Any) -> Callable[[Sample], None]:
    return lambda made: made.config["config_groups"]["group_0"]["weights"].update(values)


def _state(**values: Any) -> Callable[[Sample], None]:
    def change(made: Sample) -> None:
        (name,) = (name for name in made.stored if "quant_state" in name)
        state = json.loads(bytes(made.stored[name].numpy())) | values
        made.stored[name] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    return change


BROKEN: list[tuple[str, Callable[[Sample], None], str]] = [
    ("fp8-block-edges", _change("layer.weight_scale_inv", torch.rand(4, 6)), r"scale of shape \[4, 6\] does not fit"),
    (
        "fp8-block-edges",
        _change("layer.weight_scale_inv", torch.rand(3, 2)),
        r"with blocks of 128 x 128 or 128 x 128, and",
    ),
    ("fp8-block", _change("layer.weight_scale_inv", torch.rand(5, 3)), r"with blocks of 128 x 128"),
    ("fp8-block", _change("layer.weight_zero_point", torch.zeros(2, 3, dtype=torch.int8)), r"for F8_E4M3"),
    ("int-quantized", _change("layer.weight_scale", torch.rand(47, 1)), r"\[47, 1\] does not fit layer.weight"),
    ("int-quantized-asymmetric", _change("layer.weight_zero_point", lambda zero: zero[:24]), r"expected I8 \[48, 1\]"),
    (
        "bitsandbytes-int8",
        _change("layer.weight_format", torch.tensor(2, dtype=torch.uint8)),
        r"order 2 of the numbers",
    ),
    ("bitsandbytes-int8", _change("layer.SCB", torch.rand(40)), r"a number for each row of layer.weight \[24, 40\]"),
    ("pack-quantized-4-symmetric-group", _weights(num_bits=3), r"numbers of 3 bits; those of 4, 8 can be read"),
    (
        "pack-quantized-4-symmetric-group",
        _weights(num_bits=8),
        r"says \[20, 96\], but layer.weight_packed has 12 words",
    ),
    (
        "pack-quantized-4-symmetric-group",
        _weights(group_size=48),
        r"3 scales, which does not fit one of: 4 bits in groups",
    ),
    ("pack-quantized-4-symmetric-group", _weights(strategy="channel"), r"3 scales for each row, without zero points"),
    ("pack-quantized-4-symmetric-group", _weights(symmetric=False), r"without zero points, fits no group"),
    ("pack-quantized-4-asymmetric-group", _weights(symmetric=True), r"with zero points, fits no group"),
    ("pack-quantized-4-symmetric-group", _change("layer.weight_shape", torch.tensor([20, 100])), r"says \[20, 100\]"),
    ("pack-quantized-4-symmetric-group", _change("layer.weight_shape", torch.tensor([-20, 96])), r"says \["),
    (
        "pack-quantized-4-symmetric-group",
        _change("layer.weight_shape", torch.tensor([1, 20, 96])),
        r"expected I64 or I32",
    ),
    (
        "pack-quantized-4-symmetric-group",
        _change("layer.weight_packed", lambda part: part[:10]),
        r"beside layer.weight_p",
    ),
    ("gptq-4", _config(checkpoint_format="marlin"), r"checkpoint_format gptq or gptq_v2, found 'marlin'"),
    ("gptq-4", lambda made: made.config.clear(), r"found None of quant_method None"),
    ("gptq-4", _config(quant_method="awq"), r"stored as gptq does, but quantization_config says awq"),
    ("gptq-4", _config(group_size=48), r"3 groups for 96 inputs of layer.qweight, with a group_size of 48"),
    ("gptq-4", _config(group_size=-1), r"3 groups for 96 inputs"),
    ("gptq-4", _change("layer.qweight", lambda part: part[:-1]), r"layer.g_idx: expected I32 or I64 \[88\]"),
    ("gptq-4", _change("layer.qweight", lambda part: part[:, :-1]), r"fits neither GPTQ nor AWQ"),
    ("gptq-4", _change("layer.qzeros", torch.zeros(3, 9, dtype=torch.int32)), r"numbers of 12 bits; those of 2, 4, 8"),
    ("gptq-4-order", lambda made: made.stored.pop("layer.g_idx"), r"desc_act of quantization_config needs layer.g_idx"),
    ("awq", _config(version="gemv"), r"AWQ of version 'gemv'; only 'gemm' can be read"),
    ("awq", _config(group_size=64), r"3 groups for 96 inputs"),
    ("awq", _change("layer.g_idx", torch.zeros(96, dtype=torch.int32)), r"only 'gemm' can be read, without g_idx"),
    (
        "gpt-oss-mxfp4",
        _change("experts.gate_up_proj_scales", lambda scale: scale[:, :20]),
        r"for each group of 16 or 32",
    ),
    ("nvfp4-pack-quantized", _change("layer.weight_scale", lambda scale: scale.repeat(1, 2)), r"for each group of 16"),
    (
        "modelopt-nvfp4-experts",
        _change("experts.down_proj_weight_scale_2", torch.rand(3, 2)),
        r"or one for each of its m",
    ),
    (
        "bitsandbytes-nf4",
        _state(shape=[48, 130]),
        r"takes 3120 bytes and \(98, 0\) scales, but layer.weight has 3072 bytes",
    ),
    ("bitsandbytes-nf4", _state(blocksize=128), r"takes 3072 bytes and \(48, 0\) scales, .* \(96, 0\) scales"),
    ("bitsandbytes-nf4", _state(quant_type="fp4"), r"says quant_type 'fp4'"),
    ("bitsandbytes-nf4", _state(shape="48"), r"takes"),
    ("bitsandbytes-nf4", _state(blocksize=float("inf")), r"expected bitsandbytes' JSON"),
    ("bitsandbytes-nf4", _state(shape=None), r"expected bitsandbytes' JSON"),
    ("bitsandbytes-nf4", _state(shape=[-48, -128]), r"shape \[-48, -128\]"),
    ("bitsandbytes-nf4-nested", _state(nested_blocksize=128), r"\(640, 5\) scales"),
    ("bitsandbytes-nf4-nested", _state(nested_offset="x"), r"expected bitsandbytes' JSON"),
]


@pytest.mark.parametrize(("name", "change", "message"), BROKEN, ids=[f"{name}-{text}" for name, _, text in BROKEN])
def test_what_does_not_fit_is_refused(
    name: str, change: Callable[[Sample], None], message: str, tmp_path: Path
) -> None:
    made = sample(name)
    change(made)
    with pytest.raises(QuantizationError, match=message):
        opened(made, tmp_path)


@pytest.mark.parametrize(
    "name", [name for name in SAMPLES if name.startswith(("pack", "int-", "float-", "mx", "nv", "awq"))]
)
def test_without_a_config_the_tensors_say_enough(name: str, tmp_path: Path) -> None:
    made = sample(name)
    made.config.clear()
    assert torch.equal(opened(made, tmp_path, made.expected.dtype)[made.name], made.expected)


@pytest.mark.parametrize(
    "config",
    [
        {"config_groups": [1]},
        {"config_groups": {"group_0": "int4"}},
        {"config_groups": {"group_0": {"weights": [4]}}},
        {"config_groups": {"group_0": {"weights": {"num_bits": "4"}}}},
        {"config_groups": {"group_0": {"weights": {"group_size": 0}}}},
        {"config_groups": {"group_0": {"weights": {"block_structure": [128, 0]}}}},
        {"weight_block_size": 128},
        {"weight_block_size": [128, -1]},
        {"group_size": "128"},
        {"bits": 4.5},
    ],
    ids=str,
)
def test_a_config_that_is_malformed_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(QuantizationError, match="quantization_config: malformed, found "):
        detect({}, config)


def test_groups_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    for name, part in (("gptq-4-order", "layer.g_idx"), ("pack-quantized-order", "layer.weight_g_idx")):
        made = sample(name)
        made.stored[part][5] = 3
        with pytest.raises(QuantizationError, match="expected groups 0 to 2, found 0 to 3"):
            opened(made, tmp_path / name)["layer.weight"]


ALONE: list[tuple[str, torch.Tensor, str]] = [
    ("a.weight", torch.zeros(4, 4, dtype=torch.int32), r"a.weight: I32 numbers \[4, 4\] without a scale"),
    ("a.weight", torch.zeros(4, 4, dtype=torch.uint8), r"a.weight: U8 numbers \[4, 4\] without a scale"),
    ("a.weight", torch.zeros(4, 4, dtype=torch.int8), r"a.weight: I8 numbers \[4, 4\] without a scale"),
    ("a.weight", torch.zeros(4, 4).to(torch.float8_e5m2), r"a.weight: F8_E5M2 numbers \[4, 4\] without a scale"),
    ("a.pre_quant_scale", torch.ones(4), r"a.pre_quant_scale: a scale of a layer's inputs"),
    ("a.act.scales", torch.ones(4), r"a.act.scales: a scale of an activation function"),
    ("a.qscale_weight", torch.ones(4), r"a.qscale_weight: belongs to a quantised tensor"),
    ("experts.gate_up_proj_scale_inv", torch.ones(4), r"belongs to a quantised tensor that is not in the checkpoint"),
    ("a.weight.absmax", torch.ones(4), r"a.weight.absmax: belongs to a quantised tensor that is not in the checkpoint"),
]


@pytest.mark.parametrize(("name", "tensor", "message"), ALONE, ids=[text for _, _, text in ALONE])
def test_codes_and_scales_alone_are_refused(name: str, tensor: torch.Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match=message):
        found_in({name: tensor, "norm.weight": torch.ones(4)}, {}, tmp_path).check("a model")


def test_a_weight_that_is_stored_twice_is_refused(tmp_path: Path) -> None:
    made = sample("awq")
    made.stored["layer.weight"] = torch.zeros(24, 96)
    with pytest.raises(QuantizationError, match=r"layer.weight: stored twice, in layer.qweight too"):
        opened(made, tmp_path)


def test_scales_of_activations_are_dropped_with_the_reason(tmp_path: Path) -> None:
    made = sample("fp8-tensor")
    unused: Tensors = {
        name: torch.ones(())
        for name in (
            "layer.input_scale", "layer.input_scale_ub", "layer.activation_scale", "layer.qscale_act",
            "layer.input_global_scale",
            "experts.down_proj_activation_scale", "experts.gate_up_proj_input_scale", "attn.k_proj.k_scale",
            "attn.v_proj.v_scale", "attn.k_scale", "attn.q_scale", "layer.output_scale",
        )
    }  # fmt: skip
    found = found_in(made.stored | unused, {}, tmp_path)
    assert not found.problems and found.dropped.keys() == unused.keys()
    assert found.dropped["layer.input_scale"] == "a scale of activations; weights are not made of it"
    assert "key-value cache" in found.dropped["attn.k_scale"]


def test_other_tensors_are_left_as_they_are(tmp_path: Path) -> None:
    plain = {
        "norm.weight": torch.ones(4),
        "router.scale": torch.ones(4),
        "attention.q_scale": torch.ones(4),
        "layer_scalar": torch.ones(1, dtype=torch.bfloat16),
        "position_ids": torch.arange(4),
        "mask": torch.ones(4, dtype=torch.bool),
    }
    found = detect(write(plain, tmp_path).infos)
    assert not found.problems and not found.dropped and not found.tensors
