"""What `enter()` does to the rest of the process: nothing before it is called, nothing to plain torch afterwards."""

import subprocess
import sys
import textwrap

import pytest
import torch

from megatron.bridge import runtime
from megatron.bridge.errors import BridgeError
from megatron.bridge.runtime import capabilities, cpu
from tests.programs import TIMEOUT


def run(code: str) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter, with the warnings that a user sees."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def test_importing_changes_nothing():
    result = run(
        """
        import logging, sys, warnings
        import megatron.bridge.runtime
        assert "torch" not in sys.modules and "megatron.core" not in sys.modules

        import torch, torch.distributed
        owners = (torch.cuda, torch.Tensor, torch.distributed)
        before = [dict(vars(owner)) for owner in owners]
        from megatron.bridge.runtime import capabilities, cpu, norm
        assert "megatron.core" not in sys.modules
        for owner, names in zip(owners, before):
            changed = [name for name, value in vars(owner).items() if names.get(name, value) is not value]
            assert not changed, changed

        # With CUDA, entering imports megatron-core and changes nothing either.
        warnings.simplefilter("ignore")
        logging.disable()
        capabilities.has_cuda = lambda: True
        megatron.bridge.runtime.enter()
        assert "megatron.core" in sys.modules and not cpu._originals
        for owner, names in zip(owners, before):
            changed = [name for name, value in vars(owner).items() if names.get(name, value) is not value]
            assert changed in ([], ["_spmd_types_available"]), changed  # torch itself finds that out later
        """
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_entering_is_quiet_and_leaves_transformers_alone():
    result = run(
        """
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                             num_attention_heads=4, num_key_value_heads=2)
        model = LlamaForCausalLM(config).eval()
        tokens = torch.arange(16)[None]

        def results():
            torch.manual_seed(1)
            weights = LlamaForCausalLM(config).lm_head.weight
            half = model(tokens).logits.type(torch.float16)
            return model(tokens).logits, weights, half, model.generate(tokens, max_new_tokens=4, do_sample=True)

        before = results()
        from megatron.bridge import runtime
        runtime.enter()
        runtime.enter()
        assert all(torch.equal(*pair) for pair in zip(before, results(), strict=True))

        from megatron.core.models.gpt import GPTModel
        from megatron.core.optimizer import get_megatron_optimizer
        from megatron.core.transformer import TransformerConfig
        TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
        """
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_plain_torch_sees_cpu_tensors():
    runtime.enter()
    tensor = torch.ones(2)
    assert tensor.type() == "torch.FloatTensor"
    assert tensor.bfloat16().type() == "torch.BFloat16Tensor"
    assert tensor.type(torch.float64).dtype == torch.float64
    assert tensor.type("torch.LongTensor").dtype == torch.int64
    assert tensor.type(dtype=torch.int32, non_blocking=True).dtype == torch.int32
    assert torch.nn.Parameter(tensor).type() == "torch.FloatTensor"
    assert tensor.device == torch.device("cpu")
    assert not torch.cuda.is_available()
    with torch.device("meta"):
        assert torch.ones(2).is_meta
        assert torch.ones(2).cuda().is_meta


def test_capabilities_of_this_machine():
    assert not capabilities.has_cuda()
    assert not capabilities.has_transformer_engine()
    assert capabilities.device() == torch.device("cpu")
    assert capabilities.distributed_backend() == "gloo"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("megatron.core.utils:no_such_name", "megatron.core.utils:no_such_name does not exist"),
        ("megatron.core.optimizer.optimizer:NoClass.name", "NoClass.name does not exist"),
        ("megatron.core.utils:divide", 'megatron.core.utils:divide does not name the device "cuda"'),
    ],
)
def test_another_megatron_core_is_an_error_that_changes_nothing(monkeypatch, path, message):
    monkeypatch.setattr(cpu, "_originals", {})
    monkeypatch.setattr(cpu, "LITERAL_DEVICE", (path,))
    monkeypatch.setattr(cpu, "REPLACEMENTS", (("torch.cuda:synchronize", None),))
    before = torch.cuda.synchronize
    with pytest.raises(BridgeError, match=r"install megatron-core>=0\.19,<0\.20") as error:
        cpu.redirect()
    assert message in str(error.value)
    assert torch.cuda.synchronize is before
    assert not cpu._originals
