"""Activation functions, by the names that Hugging Face configs use."""

from functools import cache
from typing import TYPE_CHECKING

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields.part import HFConfig, Part, Provider, Values

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "relu2", "quick_gelu")


def activation(name: str = "hidden_act") -> Part:
    """The activation function of the MLP, by name; the function itself is looked up when a provider is made.

    Args:
        name: the HF field.
    """

    def to_provider(hf_config: HFConfig) -> Values:
        function = getattr(hf_config, name)
        if function not in ACTIVATIONS:
            raise UnsupportedConfigError(
                f"{name}: activation {function!r} is not supported: {', '.join(sorted(ACTIVATIONS))} are"
            )
        return {"activation_func": function}

    def to_hf(provider: Provider) -> Values:
        return {name: activation_name(provider.activation_func)}

    return Part(reads=(name,), to_provider=to_provider, to_hf=to_hf)


@cache
def activation_functions() -> "dict[str, Callable[[Tensor], Tensor]]":
    """The functions by name, in the order of `ACTIVATIONS`."""
    import torch.nn.functional as F
    from megatron.core.activations import quick_gelu, squared_relu

    from megatron.bridge.models.transformer.activations import gelu_new, gelu_tanh

    functions = (F.silu, F.silu, F.gelu, gelu_tanh, gelu_new, F.relu, squared_relu, quick_gelu)
    return dict(zip(ACTIVATIONS, functions, strict=True))


def activation_name(function: object) -> str:
    """The HF name of an activation function.

    Raises:
        UnsupportedConfigError: it has none.

    Example: `activation_name(torch.nn.functional.silu)` is `'silu'`.
    """
    for name, known in activation_functions().items():
        if known is function:
            return name
    raise UnsupportedConfigError(f"activation function {function!r} has no Hugging Face name")
