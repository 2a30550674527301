"""Gemma 4's per-layer embeddings: an embedding of the token for each layer, made in the first pipeline stage.

S is the sequence length (S' on this rank with sequence parallelism), B the batch size, H the hidden size, L the number
of layers, P the size of a layer's input. Source: transformers 5.23, `Gemma4TextModel.project_per_layer_inputs`.
"""

from typing import Any, ClassVar

import torch
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.torch_norm import LayerNormBuilder
from megatron.core.typed_torch import apply_module

from megatron.bridge.errors import ParallelLayoutError
from megatron.bridge.models.gemma.modeling_gemma4_config import Gemma4Config
from megatron.bridge.models.transformer.gpt_model import GPTModel
from megatron.bridge.models.transformer.hybrid_model import HybridModel
from megatron.bridge.models.transformer.model_extras import ModelExtras
from megatron.bridge.runtime.norm import TorchNorm
from megatron.bridge.runtime.replicated_linear import ReplicatedLinear


class Gemma4Extras(ModelExtras):
    """For a model of either class: makes the inputs of its layers; its stages hand on more than hidden states.

    Attributes:
        passes_context: whether its decoder passes a context from layer to layer. If not, it is further columns of the
            hidden states there too, as it is between stages.
    """

    config: Gemma4Config
    passes_context: ClassVar[bool]

    def __init__(self, config: Gemma4Config, *args: Any, **kwargs: Any) -> None:
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
            for layer in self.decoder.layers[-1:] if self.passes_context else self.decoder.layers:
                layer.hands_over_context = True
            self.decoder.layers[-1].hands_over_context = not self.post_process

    @property
    def stage_input_size(self) -> int:
        """The size, for each token, of what the previous stage hands over."""
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
        """Like the base class; `input_ids` are needed even if `decoder_input` is given."""
        if self.per_layer_embedding is not None:
            if decoder_input is None:
                decoder_input = self.embedding(input_ids=input_ids, position_ids=position_ids)
            context = self.per_layer_embedding(input_ids, decoder_input)
            if self.passes_context:
                kwargs["extra_block_kwargs"] = {**(kwargs.get("extra_block_kwargs") or {}), "context": context}
            else:
                decoder_input = torch.cat([decoder_input, context], dim=-1)
        output: torch.Tensor = super().forward(input_ids, position_ids, attention_mask, decoder_input, *args, **kwargs)
        return output


class Gemma4Model(Gemma4Extras, GPTModel):
    """A GPTModel with `Gemma4Extras`."""

    passes_context = True


class Gemma4HybridModel(Gemma4Extras, HybridModel):
    """A HybridModel with `Gemma4Extras`."""

    passes_context = False


class PerLayerEmbedding(MegatronModule):
    """The inputs of all layers, made of an embedding of the token and a projection of its word embedding.

    The table, which may be half of the model, is cut over the tensor-parallel ranks like that of the word embeddings.
    """

    config: Gemma4Config

    def __init__(self, config: Gemma4Config, tp_group: "torch.distributed.ProcessGroup") -> None:
        super().__init__(config)
        width = config.num_layers * config.hidden_size_per_layer_input
        assert config.init_method is not None
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
        tokens: torch.Tensor = self.word_embeddings(input_ids)
        if not self.word_embeddings.reduce_scatter_embeddings:
            tokens = tokens.transpose(0, 1)
        tokens = tokens * torch.tensor(size**0.5, dtype=tokens.dtype, device=tokens.device)
        projected: torch.Tensor = self.projection(word_embeddings)[0] * self.config.hidden_size**-0.5
        projected = self.layernorm(projected.unflatten(-1, (-1, size))).flatten(-2)
        return (projected + tokens) * 2**-0.5


class PerLayerInput(MegatronModule):
    """What a layer does with its own input, which is gated by the hidden states, projected, normalised and added.

    Args:
        norm: builds the norm from `config`, `hidden_size` and `eps`.
    """

    def __init__(self, config: Gemma4Config, norm: LayerNormBuilder) -> None:
        super().__init__(config)
        self.gate = _replicated_linear(config, config.hidden_size, config.hidden_size_per_layer_input)
        self.projection = _replicated_linear(config, config.hidden_size_per_layer_input, config.hidden_size)
        self.post_layernorm = norm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, hidden_states: torch.Tensor, own_input: torch.Tensor) -> torch.Tensor:
        """The new hidden states `[S', B, H]`, given the layer's input `[S', B, P]`."""
        gate = self.config.activation_func(self.gate(hidden_states)[0])
        return hidden_states + apply_module(self.post_layernorm)(self.projection(gate * own_input)[0])


def _replicated_linear(config: Gemma4Config, input_size: int, output_size: int) -> ReplicatedLinear:
    assert config.init_method is not None
    return ReplicatedLinear(input_size, output_size, config=config, init_method=config.init_method)
