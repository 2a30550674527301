"""What some families do to embeddings and logits, for models of either class."""

from typing import Any

import torch
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

from megatron.bridge.models.transformer.decoder_config import DecoderConfig


class ModelExtras(LanguageModule):
    """For megatron-core's GPTModel or HybridModel: what the provider's fields ask for. With their defaults, nothing.

    - `embedding_multiplier`, rounded to the dtype of the embeddings, as in transformers' Gemma;
    - `embedding_dropout`;
    - `lm_head_bias`: `output_layer.bias`, `[V]`, cut like the vocabulary;
    - `logits_multiplier`, then `final_logit_softcapping` c: `c * tanh(logits / c)` (arXiv 2408.00118, section 2).

    The logits of rows that were added for tensor parallelism are the smallest number of their dtype, so that no softmax
    gives them a share and they get no gradient. They are not infinite, because 0 times infinity is not a number.
    """

    config: DecoderConfig
    pre_process: bool
    post_process: bool
    mtp_process: bool
    embedding: Any
    decoder: Any
    output_layer: Any

    def __init__(self, config: DecoderConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if self.mtp_process and self.post_process and self.share_embeddings_and_output_weights:
            # The stage has an embedding, whose weight the output layer is given. But unless it is the first stage,
            # megatron-core makes a weight for the output layer too, and then refuses to save it.
            self.output_layer.weight = None
        if self.pre_process:
            if config.embedding_dropout is not None:
                self.embedding.embedding_dropout.p = config.embedding_dropout
            if config.embedding_multiplier != 1.0:
                # On the module, because a multimodal model calls it and merges the result with other embeddings.
                self.embedding.register_forward_hook(self._multiply_embeddings)
        if self.post_process and config.lm_head_bias:
            num_rows = self.output_layer.output_size_per_partition
            device = next(self.decoder.parameters()).device
            bias = torch.zeros(num_rows, dtype=config.params_dtype, device=device)
            self.output_layer.bias = torch.nn.Parameter(bias)
            set_tensor_model_parallel_attributes(self.output_layer.bias, is_parallel=True, dim=0, stride=1)
        if self.post_process:
            # On the module, because prediction layers and their losses call it, as clients do.
            self.output_layer.register_forward_hook(self._finish_logits)

    def _multiply_embeddings(self, module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return output * torch.tensor(self.config.embedding_multiplier, dtype=output.dtype, device=output.device)

    def _finish_logits(
        self, module: torch.nn.Module, args: object, output: tuple[torch.Tensor, torch.Tensor | None]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits, bias = output
        if self.config.logits_multiplier != 1.0:
            logits = logits * self.config.logits_multiplier
        cap = self.config.final_logit_softcapping
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        num_logits = logits.shape[-1]
        first = 0 if num_logits == self.config.padded_vocab_size else self.tp_group.rank() * num_logits
        num_real = max(self.config.vocab_size - first, 0)
        if num_real < num_logits:
            lowest = torch.finfo(logits.dtype).min
            logits = torch.nn.functional.pad(logits[..., :num_real], (0, num_logits - num_real), value=lowest)
        return logits, bias
