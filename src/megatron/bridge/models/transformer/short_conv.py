"""A gated short convolution, which takes the place of self-attention.

Letters in shapes: S positions, B sequences, H hidden size, W width of the convolution; each of T ranks has H / T
channels.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.ssm.utils import _split_tensor_factory
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from megatron.bridge.errors import BridgeError
from megatron.bridge.models.transformer.decoder_config import DecoderConfig
from megatron.bridge.models.transformer.generation_context import GenerationContext, with_earlier_inputs
from megatron.bridge.runtime.gated_delta import causal_conv1d


@dataclass
class ShortConvConfig(DecoderConfig):
    """A `DecoderConfig` with short convolutions.

    Attributes:
        conv_kernel_size: how many positions a convolution reads, its own included (W).
        conv_bias: whether the convolution and the projections around it have biases.
    """

    conv_kernel_size: int = 3
    conv_bias: bool = False


@dataclass
class ShortConvSubmodules:
    """What builds the two linear layers of a short convolution."""

    in_proj: Callable[..., Any]
    out_proj: Callable[..., Any]


class ShortConv(MegatronModule):
    """`out_proj(C * conv1d(B * x))`, where `in_proj` gives `[B; C; x]` and each channel has a causal filter of its own.

    A rank has the same channels of B, C and x, so that only the projections communicate. Source: arXiv 2511.23404,
    section 2; transformers 5.23, `Lfm2ShortConv`.
    """

    config: ShortConvConfig

    def __init__(
        self,
        config: ShortConvConfig,
        submodules: ShortConvSubmodules,
        layer_number: int,
        pg_collection: ProcessGroupCollection,
        name: str | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(config)
        self.layer_number = layer_number
        self.tp_group = pg_collection.tp
        self.num_channels = config.hidden_size // self.tp_group.size()
        options: dict[str, Any] = {"config": config, "bias": config.conv_bias, "is_expert": False}
        options["tp_group"] = self.tp_group
        self.in_proj = submodules.in_proj(
            config.hidden_size,
            3 * config.hidden_size,
            init_method=config.init_method,
            gather_output=False,
            skip_bias_add=False,
            tp_comm_buffer_name="qkv",
            name=name and f"{name}.in_proj",
            **options,
        )
        self.conv1d = _DepthwiseConv1d(config, self.num_channels)
        self.num_earlier = config.conv_kernel_size - 1
        self.out_proj = submodules.out_proj(
            config.hidden_size,
            config.hidden_size,
            init_method=config.output_layer_init_method,
            input_is_parallel=True,
            skip_bias_add=True,
            tp_comm_buffer_name="proj",
            name=name and f"{name}.out_proj",
            **options,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        inference_context: object = None,
        packed_seq_params: PackedSeqParams | None = None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Output and bias of the layer, as attention gives them.

        Args:
            hidden_states: `[S, B, H]`, or part of the positions with sequence parallelism.
            attention_mask: true where nothing is seen. A position that does not see itself is padding, for which the
                convolution reads zeros. transformers zeroes what `in_proj` reads, which is the same without biases.
        """
        mixed: torch.Tensor = self.in_proj(hidden_states)[0]
        before, after, x = mixed.transpose(0, 1).chunk(3, dim=-1)
        x = before * x
        if inference_context is not None:
            x = self._convolve_next(x, inference_context)
        else:
            if attention_mask is not None and attention_mask.shape[-2] == attention_mask.shape[-1]:
                x = x.masked_fill(attention_mask.diagonal(dim1=-2, dim2=-1)[:, 0, :, None], 0)
            x = self.conv1d(x, None if packed_seq_params is None else _boundaries(packed_seq_params))
        output: tuple[torch.Tensor, torch.Tensor | None] = self.out_proj((after * x).transpose(0, 1).contiguous())
        return output

    def _convolve_next(self, x: torch.Tensor, context: object) -> torch.Tensor:
        """The convolution of the positions after those of earlier calls, the last W - 1 of which are remembered."""
        if not isinstance(context, GenerationContext):
            raise BridgeError(
                f"ShortConv: a {type(context).__name__} keeps no state of a convolution; expected a GenerationContext"
            )
        convolved: torch.Tensor = self.conv1d(with_earlier_inputs(context, self.layer_number, x, self.num_earlier))
        return convolved[:, self.num_earlier :]

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> ShardedStateDict:
        """The three parts of `in_proj` are entries of their own, so that a checkpoint does not depend on the layout."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for key in (f"{prefix}in_proj.weight", f"{prefix}in_proj.bias"):
            if key in state:
                state[key] = _split_tensor_factory(state[key], [self.num_channels] * 3, ["B", "C", "x"], 0)
        return state


class _DepthwiseConv1d(torch.nn.Conv1d):
    """A causal filter for each of this rank's channels: `weight` `[H / T, 1, W]`, `bias` `[H / T]`."""

    def __init__(self, config: ShortConvConfig, num_channels: int) -> None:
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        super().__init__(
            num_channels,
            num_channels,
            config.conv_kernel_size,
            groups=num_channels,
            bias=config.conv_bias,
            device=device,
            dtype=config.params_dtype,
        )
        for parameter in self.parameters():
            set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)
        if config.perform_initialization:
            assert config.init_method is not None
            with get_cuda_rng_tracker().fork():
                config.init_method(self.weight)
            if self.bias is not None:
                torch.nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor, cu_seqlens: torch.Tensor | None = None) -> torch.Tensor:
        """`[B, S, H / T]` to the same; `cu_seqlens` says where packed sequences begin and end."""
        return causal_conv1d(x, self.weight.squeeze(1), self.bias, cu_seqlens=cu_seqlens)[0]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Iterable[tuple[int, int, int]] = (), metadata: object = None
    ) -> ShardedStateDict:
        """Both parameters, cut along their channels."""
        axes, tensors = {"weight": 0, "bias": 0}, self.state_dict(keep_vars=True)
        state: ShardedStateDict = make_sharded_tensors_for_checkpoint(tensors, prefix, axes, sharded_offsets)
        return state


def _boundaries(packed: PackedSeqParams) -> torch.Tensor:
    """Where packed sequences begin and end, including the padding between them."""
    return packed.cu_seqlens_q if packed.cu_seqlens_q_padded is None else packed.cu_seqlens_q_padded
