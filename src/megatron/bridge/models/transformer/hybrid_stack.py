"""megatron-core's stack of layers of different kinds, with a final norm that does not need Transformer Engine."""

from typing import Any

from megatron.core import tensor_parallel
from megatron.core.models.hybrid import hybrid_block
from megatron.core.transformer.torch_norm import LayerNormBuilder
from megatron.core.transformer.transformer_config import TransformerConfig


class HybridStack(hybrid_block.HybridStack):
    """A HybridStack that is given the class of its final norm.

    With sequence parallelism, its dropouts differ between tensor-parallel ranks, as those of a TransformerBlock do.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        norm: LayerNormBuilder,
        post_layer_norm: bool = True,
        pp_layer_offset: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, post_layer_norm=False, pp_layer_offset=pp_layer_offset, **kwargs)
        self._num_before = pp_layer_offset
        self.post_layer_norm = post_layer_norm
        if self.post_process and post_layer_norm:
            final_norm = norm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
            self.final_norm = final_norm  # type: ignore[assignment]  # declared as Transformer Engine's

    def number_layers(self) -> None:
        """Gives the layers the stack's numbers, by which they are saved. Their attention and MLP keep the model's."""
        for number, layer in enumerate(self.layers, self._num_before + 1):
            setattr(layer, "layer_number", number)  # noqa: B010 (modules have no such attribute)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As megatron-core's."""
        if not self.config.sequence_parallel:
            return super().forward(*args, **kwargs)
        with tensor_parallel.get_cuda_rng_tracker().fork():
            return super().forward(*args, **kwargs)
