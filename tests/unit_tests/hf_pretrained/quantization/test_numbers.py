import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron.bridge.models.hf_pretrained.quantization import decode
from megatron.bridge.verification.bits import same_bits
from tests.programs import TIMEOUT
from tests.unit_tests.hf_pretrained.quantization import words  # noqa: F401 (adds its samples)
from tests.unit_tests.hf_pretrained.quantization.formats import SAMPLES, opened, sample


@pytest.mark.parametrize("name", SAMPLES)
def test_the_numbers_are_the_reference_s(name: str, tmp_path: Path) -> None:
    made = sample(name)
    source = opened(made, tmp_path, made.expected.dtype)
    assert list(source) == [made.name] and not source.found.problems
    assert source.infos[made.name].shape == made.expected.shape
    assert same_bits(source[made.name], made.expected)
    assert made.expected.abs().max() > 0 and made.expected.unique().numel() > 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in SAMPLES if "int8" not in name])
def test_other_dtypes_are_rounded_once(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    made = sample(name)
    source = opened(made, tmp_path, torch.float32)
    exact = source[made.name]
    assert same_bits(opened(made, tmp_path, dtype)[made.name], exact.to(dtype))


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_slice_is_what_slicing_the_whole_gives(name: str, tmp_path: Path, data: st.DataObject) -> None:
    made = sample(name)
    source = opened(made, tmp_path)
    view, whole = source.view(made.name), source[made.name]
    index = tuple(
        data.draw(st.integers(0, size - 1) | st.builds(slice, *[st.integers(0, size + 3)] * 2, st.integers(1, 5)))
        for size in whole.shape
    )
    assert torch.equal(view[index], whole[index])


@pytest.mark.parametrize("name", SAMPLES)
def test_blocks_of_bounded_size_give_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = sample(name)
    monkeypatch.setattr(decode, "CHUNK", 100)
    assert same_bits(opened(made, tmp_path, made.expected.dtype)[made.name], made.expected)


def test_finding_needs_no_torch() -> None:
    code = (
        "import sys; from megatron.bridge.models.hf_pretrained.quantization.detection import detect; "
        "detect({}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIMEOUT)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.int8])
@pytest.mark.parametrize("leaves_out", [None, (0x7F, 0xFF)])
def test_every_code_of_a_byte(dtype: torch.dtype, leaves_out: tuple[int, ...] | None) -> None:
    """As torch has it, NaN and the smallest numbers included; without E4M3's NaN it is made in another way."""
    codes = torch.tensor([code for code in range(256) if code not in (leaves_out or ())], dtype=torch.uint8)
    out = torch.empty(1, len(codes))
    decode.decode_bytes(codes.view(dtype)[None], out)
    expected = codes.view(dtype).float()
    assert torch.equal(out[0].isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert same_bits(out[0][numbers], expected[numbers])
