"""megatron-core's stack of layers of different kinds, with a final norm that does not need Transformer Engine."""

from typing import Any

from megatron.core.models.hybrid import hybrid_block
from megatron.core.transformer.torch_norm import LayerNormBuilder
from megatron.core.transformer.transformer_config import TransformerConfig


class HybridStack(hybrid_block.HybridStack):
    """A HybridStack that is given the class of its final norm."""

    def __init__(
        self, config: TransformerConfig, *, norm: LayerNormBuilder, post_layer_norm: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(config, post_layer_norm=False, **kwargs)
        self.post_layer_norm = post_layer_norm
        if self.post_process and post_layer_norm:
            final_norm = norm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
            self.final_norm = final_norm  # type: ignore[assignment]  # declared as Transformer Engine's
