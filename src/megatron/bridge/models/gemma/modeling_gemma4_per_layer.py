"""Gemma 4's embeddings per layer: for each layer an embedding of the token, made in the first pipeline stage.

S is the sequence length (S' on this rank with sequence parallelism), B the batch size, H the hidden size, L the number
of layers, P the size of a layer's input. Source: transformers 5.23, `Gemma4TextModel.project_per_layer_inputs`.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from megatron.core.transformer.module import MegatronModule

from megatron.bridge.errors import ParallelLayoutError
from megatron.bridge.models.transformer.gpt_model import GPTModel
from megatron.bridge.runtime.norm import TorchNorm
from megatron.bridge.runtime.replicated_linear import ReplicatedLinear


class Gemma4Model(GPTModel):
    """A GPTModel that makes the inputs of its layers, and whose stages hand on more than hidden states."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.per_layer_embedding: PerLayerEmbedding | None = None
        if self.pre_process and config.hidden_size_per_layer_input:
            self.per_layer_embedding = PerLayerEmbedding(config, self.pg_collection.tp)
        if config.has_context:
            if not self.decoder.layers:
                raise ParallelLayoutError(
                    "Gemma4Model: a pipeline stage has no layers, but with hidden_size_per_layer_input or "
                    "num_kv_shared_layers it is layers that hand on more than hidden states; give each stage one"
                )
            self.decoder.layers[-1].hands_over_context = not self.post_process

    @property
    def stage_input_size(self) -> int:
        """The size, for each token, of what the stage before hands over."""
        config = self.config
        context_size = config.context_size(self.decoder.layers[0].layer_number - 1) if config.has_context else 0
        return config.hidden_size + context_size

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        decoder_input: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As the base class; `input_ids` are needed where `decoder_input` is given too."""
        if self.per_layer_embedding is not None:
            if decoder_input is None:
                decoder_input = self.embedding(input_ids=input_ids, position_ids=position_ids)
            context = self.per_layer_embedding(input_ids, decoder_input)
            kwargs["extra_block_kwargs"] = {**(kwargs.get("extra_block_kwargs") or {}), "context": context}
        return super().forward(input_ids, position_ids, attention_mask, decoder_input, *args, **kwargs)


class PerLayerEmbedding(MegatronModule):
    """The inputs of all layers: an embedding of the token, and a projection of its word embedding.

    The table, which may be half of the model, is cut over the tensor-parallel ranks as that of word embeddings is.
    """

    def __init__(self, config: Any, tp_group: Any) -> None:
        super().__init__(config)
        width = config.num_layers * config.hidden_size_per_layer_input
        self.word_embeddings = VocabParallelEmbedding(
            config.padded_vocab_size_per_layer_input,
            width,
            init_method=config.init_method,
            reduce_scatter_embeddings=config.sequence_parallel,
            config=config,
            tp_group=tp_group,
        )
        self.projection = _replicated_linear(config, config.hidden_size, width)
        self.layernorm = TorchNorm(config, config.hidden_size_per_layer_input, config.layernorm_epsilon)

    def forward(self, input_ids: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        """The inputs `[S', B, L * P]` for tokens `[B, S]` with word embeddings `[S', B, H]`."""
        size = self.config.hidden_size_per_layer_input
        tokens = self.word_embeddings(input_ids)
        if not self.word_embeddings.reduce_scatter_embeddings:
            tokens = tokens.transpose(0, 1)
        tokens = tokens * torch.tensor(size**0.5, dtype=tokens.dtype, device=tokens.device)
        projected = self.projection(word_embeddings)[0] * self.config.hidden_size**-0.5
        projected = self.layernorm(projected.unflatten(-1, (-1, size))).flatten(-2)
        return (projected + tokens) * 2**-0.5


class PerLayerInput(MegatronModule):
    """What a layer does with its input: it is gated by the hidden states, projected, normed and added to them."""

    def __init__(self, config: Any, norm: Any) -> None:
        super().__init__(config)
        self.gate = _replicated_linear(config, config.hidden_size, config.hidden_size_per_layer_input)
        self.projection = _replicated_linear(config, config.hidden_size_per_layer_input, config.hidden_size)
        self.post_layernorm = norm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, hidden_states: torch.Tensor, own_input: torch.Tensor) -> torch.Tensor:
        """The new hidden states `[S', B, H]`, for an input `[S', B, P]`."""
        gate = self.config.activation_func(self.gate(hidden_states)[0])
        return hidden_states + self.post_layernorm(self.projection(gate * own_input)[0])


def _replicated_linear(config: Any, input_size: int, output_size: int) -> ReplicatedLinear:
    return ReplicatedLinear(input_size, output_size, config=config, init_method=config.init_method)
