"""The Mamba-2 kernels for the CPU, against transformers' own torch implementation."""

import pytest
import torch
from transformers.models.bamba import modeling_bamba
from transformers.models.mamba2 import modeling_mamba2
from transformers.models.nemotron_h import modeling_nemotron_h

from megatron.bridge.runtime import mamba
from tests.rounding import ROUNDING, Float64, tolerance

MODULES = (modeling_mamba2, modeling_nemotron_h, modeling_bamba)
HEADS, SIZE, GROUPS, STATES = 4, 3, 2, 5


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
@pytest.mark.parametrize("length", [1, 7, 8, 19])
@pytest.mark.parametrize("dt_limit", [mamba.NO_LIMIT, (0.4, 0.9)])
def test_scan(module: object, length: int, dt_limit: tuple[float, float], random: torch.Generator) -> None:
    """Lengths within, at and over the ends of chunks."""
    x = torch.randn(2, length, HEADS, SIZE, generator=random)
    dt = torch.randn(2, length, HEADS, generator=random)
    B, C = torch.randn(2, 2, length, GROUPS, STATES, generator=random)
    A, D, dt_bias = -torch.rand(HEADS, generator=random), *torch.randn(2, HEADS, generator=random)
    arguments = {"chunk_size": 8, "D": D, "dt_bias": dt_bias, "dt_softplus": True, "dt_limit": dt_limit}
    expected = module.mamba2_chunk_scan(x, dt, A, B, C, **arguments)  # type: ignore[attr-defined]
    with Float64():
        wide = [tensor.double() for tensor in (x, dt, A, B, C)]
        exact = module.mamba2_chunk_scan(*wide, **{**arguments, "D": D.double(), "dt_bias": dt_bias.double()})  # type: ignore[attr-defined]
    assert (mamba.chunk_scan(x, dt, A, B, C, **arguments) - expected).abs().max() <= tolerance(expected, exact)


@pytest.mark.parametrize("chunk_size", [1, 4, 64])
def test_scan_is_the_recurrence(chunk_size: int, random: torch.Generator) -> None:
    x = torch.randn(1, 11, HEADS, SIZE, generator=random, dtype=torch.float64)
    dt = torch.rand(1, 11, HEADS, generator=random, dtype=torch.float64)
    B, C = torch.randn(2, 1, 11, HEADS, STATES, generator=random, dtype=torch.float64)
    A = -torch.rand(HEADS, generator=random, dtype=torch.float64)
    state, outputs = torch.zeros(1, HEADS, SIZE, STATES, dtype=torch.float64), []
    for s in range(11):
        decay = (dt[:, s] * A).exp()[..., None, None]
        state = decay * state + (dt[:, s, :, None] * x[:, s])[..., None] * B[:, s, :, None]
        outputs.append((state * C[:, s, :, None]).sum(-1))
    found = mamba.chunk_scan(x, dt, A, B, C, chunk_size)
    assert (found - torch.stack(outputs, 1)).abs().max() <= ROUNDING


@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution(activation: str | None, random: torch.Generator) -> None:
    x = torch.randn(2, 6, 9, generator=random)
    weight, bias = torch.randn(6, 4, generator=random), torch.randn(6, generator=random)
    expected = modeling_mamba2.causal_conv1d_fn(x, weight, bias, activation=activation)
    torch.testing.assert_close(mamba.causal_conv1d(x, weight, bias, activation), expected)


def test_gated_norm(random: torch.Generator) -> None:
    """Groups of three channels; the fused kernel gates first, so the gate may also be given to the norm."""
    x, gate = torch.randn(2, 2, 5, 12, generator=random)
    theirs = modeling_mamba2.MambaRMSNormGated(12, group_size=3, eps=1e-3)
    ours = mamba.GatedRMSNorm(12, eps=1e-3, group_size=3)
    with torch.no_grad():
        theirs.weight.copy_(torch.randn(12, generator=random))
        ours.weight.copy_(theirs.weight)
    torch.testing.assert_close(ours(x, gate), theirs(x, gate))
    torch.testing.assert_close(ours(x * torch.nn.functional.silu(gate)), theirs(x, gate))
