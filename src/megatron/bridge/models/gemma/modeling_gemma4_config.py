"""Gemma 4's config: layers that differ in their heads, in the width of their MLP, and in whose keys they use."""

import copy
from dataclasses import dataclass
from typing import Literal, Self

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.transformer.decoder_config import DecoderConfig, padded_vocab_size


@dataclass
class Gemma4Config(DecoderConfig):
    """A `DecoderConfig` whose layers may use the keys and values of others, and with a window have heads of their own.

    Layers are numbered from 1, as in megatron-core.

    Attributes:
        full_attention_k_eq_v: in layers with full attention, the values are the keys, before norm and rotary embedding.
        num_kv_shared_layers: this many layers at the end use the keys and values of the last layer before them that is
            of their kind (with a window, or with full attention).
        use_double_wide_mlp: the MLPs of these layers are twice as wide.
        hidden_size_per_layer_input: the size of the token embedding that each layer reads; 0 for none.
        vocab_size_per_layer_input: the rows of the table of these embeddings, without padding.
    """

    full_attention_k_eq_v: bool = False
    num_kv_shared_layers: int = 0
    use_double_wide_mlp: bool = False
    hidden_size_per_layer_input: int = 0
    vocab_size_per_layer_input: int = 0
    heterogeneous_block_specs: bool = True
    # megatron-core refuses variable_seq_lengths with another one
    moe_token_dispatcher_type: Literal["allgather", "alltoall", "flex"] = "alltoall"

    def finalize(self) -> None:
        if self.pipeline_model_parallel_size > 1 and self.has_context:
            self.variable_seq_lengths = True  # what stages hand over differs in size
        super().finalize()
        own, kinds = self.num_layers - self.num_kv_shared_layers, [*map(self.has_window, range(1, self.num_layers + 1))]
        if not 0 <= own <= self.num_layers or set(kinds[:own]) != set(kinds):
            raise UnsupportedConfigError(
                f"Gemma4Provider: num_kv_shared_layers is {self.num_kv_shared_layers} of {self.num_layers}, but each of"
                " these layers needs one of its kind, with or without a window, in front of them"
            )
        if self.moe_shared_expert_overlap:
            raise UnsupportedConfigError(
                "Gemma4Provider: moe_shared_expert_overlap must be False: norms stand around the dense MLP"
            )

    def get_config_for_layer(self, layer_number: int) -> Self:
        """The config with which megatron-core builds a layer."""
        config = copy.copy(self.layer_config(layer_number))
        if self.use_double_wide_mlp and self.kv_source(layer_number) != layer_number:
            assert self.ffn_hidden_size is not None
            config.ffn_hidden_size = 2 * self.ffn_hidden_size
            if self.moe_shared_expert_intermediate_size:
                config.moe_shared_expert_intermediate_size = 2 * self.moe_shared_expert_intermediate_size
        return config

    def kv_source(self, layer_number: int) -> int:
        """The layer whose keys and values the layer uses; it may be the layer itself."""
        last = self.num_layers - self.num_kv_shared_layers
        if layer_number <= last:
            return layer_number
        has_window = self.has_window(layer_number)
        return max(source for source in range(1, last + 1) if self.has_window(source) == has_window)

    @property
    def padded_vocab_size_per_layer_input(self) -> int:
        """The rows of the table in Megatron."""
        tp = self.tensor_model_parallel_size
        return padded_vocab_size(self.vocab_size_per_layer_input, self.make_vocab_size_divisible_by, tp)

    def kv_sources(self) -> list[int]:
        """The layers whose keys and values others use, in order: at most one with a window and one without."""
        num_layers = self.num_layers
        shared = range(num_layers - self.num_kv_shared_layers + 1, num_layers + 1)
        return sorted({self.kv_source(layer_number) for layer_number in shared})

    @property
    def has_context(self) -> bool:
        """Whether layers hand on more than hidden states."""
        return bool(self.hidden_size_per_layer_input or self.num_kv_shared_layers)

    def context_size(self, num_done: int) -> int:
        """The size, for each token on a rank, of what the first `num_done` layers hand on besides hidden states."""
        configs = [self.get_config_for_layer(source) for source in self.kv_sources() if source <= num_done]
        kv_size = sum(2 * config.kv_size for config in configs)
        num_ranks = 1 if self.sequence_parallel else self.tensor_model_parallel_size
        return (self.num_layers - num_done) * self.hidden_size_per_layer_input + kv_size // num_ranks

    @property
    def kv_size(self) -> int:
        """The size of a token's keys, and of its values, in the layers that this is the config of."""
        assert self.kv_channels is not None and self.num_query_groups is not None, "finalize() sets them"
        return self.kv_channels * self.num_query_groups
