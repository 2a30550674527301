"""Fits a Megatron config to the machine: fused CUDA kernels are switched off where they cannot run."""

from typing import TYPE_CHECKING

from megatron.bridge.runtime import capabilities

if TYPE_CHECKING:
    from megatron.core.transformer import TransformerConfig

# Fields that choose a CUDA kernel instead of the same computation in plain torch.
_CUDA_KERNELS = (
    "bias_activation_fusion",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
    "apply_rope_fusion",
    "gradient_accumulation_fusion",
    "moe_permute_fusion",
    "moe_router_fusion",
    "cross_entropy_loss_fusion",
    "persist_layer_norm",
    "moe_grouped_gemm",
)


def fit_config(config: "TransformerConfig") -> None:
    """Switches off what this machine lacks. Results stay the same up to rounding; with CUDA and TE, nothing changes."""
    if not capabilities.has_transformer_engine():
        config.transformer_impl = "local"
        config.gradient_accumulation_fusion = False
        config.moe_grouped_gemm = False
    if not capabilities.has_cuda():
        config.use_cpu_initialization = True
        for name in _CUDA_KERNELS:
            if hasattr(config, name):
                setattr(config, name, False)
