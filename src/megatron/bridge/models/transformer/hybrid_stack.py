"""megatron-core's stack of layers of different kinds, with a final norm that does not need Transformer Engine."""

from typing import Any

from megatron.core.models.hybrid import hybrid_block


class HybridStack(hybrid_block.HybridStack):
    """A HybridStack that takes the class of its final norm."""

    def __init__(
        self, config: Any, *args: Any, norm: Any, post_layer_norm: bool = True, post_process: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(config, *args, post_layer_norm=False, post_process=post_process, **kwargs)
        self.post_layer_norm = post_layer_norm
        if post_process and post_layer_norm:
            self.final_norm = norm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)
