"""Gemma 4's config: layers that differ in their heads, in the width of their MLP, and in whose keys they use."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from megatron.core.transformer.spec_utils import ModuleSpec

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.gemma.modeling_gemma4_layer import Gemma4SelfAttention, Gemma4TransformerLayer
from megatron.bridge.models.gemma.modeling_gemma4_moe import make_experts_parallel
from megatron.bridge.models.gemma.modeling_gemma4_per_layer import Gemma4Model
from megatron.bridge.models.gpt_provider import GPTModelProvider, padded_vocab_size


@dataclass
class Gemma4Provider(GPTModelProvider):
    """A provider whose layers may use the keys and values of others; those with a window have heads of their own.

    Layers have numbers from 1, as in megatron-core.

    Attributes:
        full_attention_k_eq_v: the values of layers with full attention are the keys, before norm and rotary embedding.
        num_kv_shared_layers: so many layers at the end use the keys and values of the last layer before them that is of
            their kind (with a window, or with full attention).
        use_double_wide_mlp: the MLPs of these are twice as wide.
        hidden_size_per_layer_input: size of the embedding of the token that each layer reads, 0 for none.
        vocab_size_per_layer_input: rows of the table of these, without padding.
    """

    model_class: ClassVar[Any] = Gemma4Model

    full_attention_k_eq_v: bool = False
    num_kv_shared_layers: int = 0
    use_double_wide_mlp: bool = False
    hidden_size_per_layer_input: int = 0
    vocab_size_per_layer_input: int = 0
    heterogeneous_block_specs: bool = True
    moe_token_dispatcher_type: str = "alltoall"  # megatron-core refuses variable_seq_lengths with another

    def finalize(self) -> None:
        if self.pipeline_model_parallel_size > 1 and self.has_context:
            self.variable_seq_lengths = True  # what stages hand over is of different sizes
        super().finalize()
        if self.moe_shared_expert_overlap:
            raise UnsupportedConfigError(
                "Gemma4Provider: moe_shared_expert_overlap must be False: norms stand around the dense MLP"
            )

    def modify_layer_spec(self, spec: ModuleSpec) -> None:
        spec.module = Gemma4TransformerLayer
        spec.submodules.self_attention.module = Gemma4SelfAttention
        if self.num_moe_experts is not None:
            make_experts_parallel(spec.submodules)

    def get_config_for_layer(self, layer_number: int) -> Self:
        """The config with which megatron-core builds a layer."""
        config = copy.copy(self.layer_config(layer_number))
        if self.use_double_wide_mlp and self.kv_source(layer_number) != layer_number:
            config.ffn_hidden_size = 2 * self.ffn_hidden_size
            if self.moe_shared_expert_intermediate_size:
                config.moe_shared_expert_intermediate_size = 2 * self.moe_shared_expert_intermediate_size
        return config

    def kv_source(self, layer_number: int) -> int:
        """The layer whose keys and values the layer uses: perhaps itself."""
        last = self.num_layers - self.num_kv_shared_layers
        if layer_number <= last:
            return layer_number
        has_window = self.has_window(layer_number)
        return max(source for source in range(1, last + 1) if self.has_window(source) == has_window)

    @property
    def padded_vocab_size_per_layer_input(self) -> int:
        """Rows of the table in Megatron."""
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
        kv_size = sum(2 * config.kv_channels * config.num_query_groups for config in configs)
        num_ranks = 1 if self.sequence_parallel else self.tensor_model_parallel_size
        return (self.num_layers - num_done) * self.hidden_size_per_layer_input + kv_size // num_ranks
