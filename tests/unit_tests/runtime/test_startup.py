"""What a start imports, and functions that are compiled when they are first called."""

import gc
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from megatron.bridge.runtime import startup
from tests.tiny_folder import save_tiny_folder

# Decorates functions in the context and without it, and compares what they return and what was compiled.
_BOTH_WAYS = """
        import contextlib
        import torch
        from megatron.bridge.runtime.startup import lean_imports

        def results(context):
            graphs = []
            def backend(graph, inputs):
                graphs.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
                return graph.forward

            with context:
                @torch.compile(backend=backend)
                def double(x):
                    "Doubles."
                    return x * 2

                class Owner:
                    def __init__(self, y):
                        self.y = y

                    @torch.compile(backend=backend, dynamic=True)
                    def add(self, x, scale=1):
                        return x * scale + self.y

                @torch.compiler.disable
                def apart(x):
                    return x + 1

                @torch.compiler.disable(reason="a test")
                def also_apart(x):
                    return x - 1

                @torch.compiler.disable(recursive=False)
                def alone(x):
                    return double(x) - 3

                named = torch.compile(double.__wrapped__, backend=backend)
                module = torch.compile(torch.nn.Linear(2, 2), backend=backend)

            @torch.compile(backend=backend, fullgraph=True)
            def inlines(x):
                return double(x) + Owner(x).add(x, scale=2)

            @torch.compile(backend=backend)
            def breaks(x):
                return also_apart(apart(x * 2) * 2) * 3

            for function in (double, Owner(1).add, apart, also_apart, alone, named, inlines, breaks):
                for size in (3, 3, 5):
                    yield function(torch.arange(float(size))).tolist()
                marks = {name: value for name, value in vars(function).items() if name.startswith("_torchdynamo_d")}
                yield list(graphs), function.__name__, function.__doc__, marks
            yield double.__wrapped__.__name__, type(module).__name__

        deferred = list(results(lean_imports()))
        torch.compiler.reset()
        at_once = list(results(contextlib.nullcontext()))
        assert deferred == at_once, (deferred, at_once)
        """


def run(code: str, *argv: object) -> None:
    """Runs `code` in a fresh interpreter, where torch may compile."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, argv)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory):
    return save_tiny_folder(tmp_path_factory.mktemp("tiny") / "hf", "Qwen3ForCausalLM")


def test_a_provider_needs_no_compiler(hf_folder):
    run(
        """
        import sys
        from megatron.bridge import AutoBridge
        AutoBridge.from_hf_pretrained(sys.argv[1]).to_megatron_provider().finalize()
        assert "megatron.core.models.gpt.gpt_model" in sys.modules
        assert not {"torch._dynamo", "torch._inductor"} & set(sys.modules)
        """,
        hf_folder,
    )


def test_an_import_needs_no_compiler(hf_folder, tmp_path):
    run(
        """
        import sys
        from megatron.bridge.cli import main
        assert main(["import", *sys.argv[1:]]) == 0
        assert not {"torch._dynamo", "torch._inductor"} & set(sys.modules)
        """,
        hf_folder,
        tmp_path / "checkpoint",
    )


def test_with_cuda_functions_compile_when_they_are_called():
    run(
        """
        import logging, sys, warnings
        warnings.simplefilter("ignore")
        logging.disable()
        from megatron.bridge import runtime
        from megatron.bridge.runtime import capabilities
        capabilities.has_cuda = lambda: True
        runtime.enter()
        assert "torch._dynamo" not in sys.modules

        import torch
        from megatron.core import jit
        from megatron.core.fusions import fused_bias_swiglu
        assert fused_bias_swiglu.swiglu.__name__ == "swiglu"
        assert jit.jit_fuser is not torch.compile  # for modules that are imported from here on
        compiled = []
        def backend(graph, inputs):
            compiled.append(graph)
            return graph.forward
        torch.compiler.set_default_backend(backend)
        x = torch.randn(3, 8)
        gate, up = x.chunk(2, -1)
        torch.testing.assert_close(fused_bias_swiglu.swiglu(x), torch.nn.functional.silu(gate) * up)
        fused_bias_swiglu.swiglu(x)
        assert len(compiled) == 1
        """
    )


def test_a_deferred_function_is_what_torch_makes_of_it():
    run(_BOTH_WAYS)


def test_the_context_leaves_nothing_behind():
    before = torch.compile, torch.compiler.disable
    with pytest.raises(ZeroDivisionError), startup.lean_imports(), startup.lean_imports():
        assert torch.compile is not before[0]
        assert not gc.isenabled()
        1 / 0  # noqa: B018
    assert (torch.compile, torch.compiler.disable) == before
    assert gc.isenabled()
    gc.disable()
    try:
        with startup.lean_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
