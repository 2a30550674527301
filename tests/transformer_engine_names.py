"""Names and shapes of models made of Transformer Engine modules, on machines that cannot run these.

Run as a program, which prints them as JSON for the tiny models named as arguments. The kernels are stood in for by
modules that only hold the parameters of Transformer Engine's public classes; the layer specs, the wrappers around
these classes, their checkpoint keys and the grouped experts are megatron-core's own code, as they run with it.
"""

import importlib
import json
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import nn

NAME = "transformer_engine"


class _Holder(nn.Module):
    """A Transformer Engine module without its computation; its FP8 state is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8, self.fp8_calibration = False, False
        self.fp8_meta = {"fp8_checkpoint": False}

    def hold(self, name: str, *shape: int) -> None:
        """A parameter."""
        self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        del state


class Linear(_Holder):
    """`weight [out, in]`, `bias [out]`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **kwargs: Any) -> None:
        super().__init__()
        self.parallel_mode = kwargs.get("parallel_mode")
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        self.hold("weight", out_features, in_features)
        if bias:
            self.hold("bias", out_features)


class LayerNormLinear(Linear):
    """Also `layer_norm_weight [in]`, and `layer_norm_bias [in]` of a LayerNorm."""

    def __init__(self, in_features: int, *args: Any, normalization: str = "LayerNorm", **kwargs: Any) -> None:
        super().__init__(in_features, *args, **kwargs)
        self.hold("layer_norm_weight", in_features)
        if normalization == "LayerNorm":
            self.hold("layer_norm_bias", in_features)


class RMSNorm(_Holder):
    """`weight [H]`."""

    def __init__(self, normalized_shape: int, **kwargs: Any) -> None:
        super().__init__()
        self.hold("weight", normalized_shape)


class LayerNorm(RMSNorm):
    """Also `bias [H]`."""

    def __init__(self, normalized_shape: int, **kwargs: Any) -> None:
        super().__init__(normalized_shape)
        self.hold("bias", normalized_shape)


class GroupedLinear(_Holder):
    """`weight0` to `weight{N - 1}`, and biases by the same numbers."""

    def __init__(self, num_gemms: int, in_features: int, out_features: int, bias: bool = True, **kwargs: Any) -> None:
        super().__init__()
        self.num_gemms, self.use_bias = num_gemms, bias
        for index in range(num_gemms):
            self.hold(f"weight{index}", out_features, in_features)
            if bias:
                self.hold(f"bias{index}", out_features)


class DotProductAttention(_Holder):
    """Without parameters, except for the logits of attention sinks."""

    def __init__(self, num_attention_heads: int, *args: Any, softmax_type: str = "vanilla", **kwargs: Any) -> None:
        super().__init__()
        if softmax_type == "learnable":
            self.softmax_offset = nn.Parameter(torch.empty(num_attention_heads))


class _Nothing(type):
    """The kind of class that stands for what is imported and not used: its attributes are `None`."""

    def __getattr__(cls, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Module(ModuleType):
    """A module in which every other name is an empty class."""

    __path__: list[str] = []
    __version__ = "2.10.0"
    _given: dict[str, Any] = {
        **{c.__name__: c for c in (Linear, LayerNormLinear, RMSNorm, LayerNorm, GroupedLinear, DotProductAttention)},
        "get_cpu_offload_context": lambda *args, **kwargs: (None, None),
    }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in ("pytorch", "common", "recipe", "distributed"):
            return importlib.import_module(f"{self.__name__}.{name}")
        value = self._given.get(name) or _Nothing(name, (), {})
        setattr(self, name, value)
        return value


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] == NAME else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        parent, _, name = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], name, module)


def describe(name: str) -> list[dict[str, Any]]:
    """Every weight of a tiny model: its names, its shape, and the HF tensors it is made of with their shapes."""
    from megatron.bridge import AutoBridge
    from megatron.bridge.models.conversion.plan import build_plan
    from megatron.bridge.models.placement import read_placement
    from tests.tiny_models import TINY_MODELS

    bridge = AutoBridge.from_hf_config(TINY_MODELS[name].hf_config())
    provider = bridge.to_megatron_provider(load_weights=False)
    provider.moe_grouped_gemm = True
    provider.finalize()
    (model,) = provider.provide_distributed_model(wrap_with_ddp=False, init_model_with_meta_device=True)
    registry = bridge._model_bridge.registry()
    plan = build_plan(read_placement([model]), registry, provider, None, model_name=name)
    in_plan = {task.param_name for task in plan}
    left_out = [name for name, _ in model.named_parameters() if name not in in_plan]
    assert not left_out, f"not in the plan: {left_out}"
    rows = []
    for task in plan:
        looked_up = registry.megatron_to_hf_lookup(task.param_name)
        rows.append(
            {
                "param_name": task.param_name,
                "global_name": task.global_param_name,
                "shape": list(task.shape),
                "hf_shapes": {hf: list(shape) for hf, shape in task.hf_shapes.items()},
                "looked_up": looked_up and sorted(looked_up.hf_names.values()),
            }
        )
    return rows


def main() -> None:
    """Prints the weights of the models named as arguments, built as where Transformer Engine can run."""
    sys.meta_path.insert(0, _Finder())
    from megatron.bridge import runtime
    from megatron.bridge.runtime import capabilities, fusions

    runtime.enter()
    capabilities.has_transformer_engine = lambda: True
    fusions._CUDA_KERNELS = tuple(name for name in fusions._CUDA_KERNELS if name != "moe_grouped_gemm")
    print(json.dumps({name: describe(name) for name in sys.argv[1:]}))


if __name__ == "__main__":
    main()
