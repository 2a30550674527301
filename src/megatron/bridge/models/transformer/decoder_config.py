"""`DecoderConfig`: what a decoder is, in the fields of a Megatron config; and `set_dtype`."""

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from megatron.core.transformer import MLATransformerConfig, TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention

from megatron.bridge.errors import ParallelLayoutError, UnsupportedConfigError
from megatron.bridge.runtime.fusions import fit_config

if TYPE_CHECKING:
    from megatron.core.transformer.spec_utils import ModuleSpec

QK_LAYERNORM_SCOPES = ("head", "projection", "separate_heads", "head_after_rope")
WINDOW_ATTENTION_FIELDS = ("kv_channels", "num_query_groups", "softmax_type")


def padded_vocab_size(vocab_size: int, make_vocab_size_divisible_by: int, tensor_model_parallel_size: int) -> int:
    """The number of embedding rows: `vocab_size` rounded up so that every tensor-parallel rank gets equal parts."""
    multiple = make_vocab_size_divisible_by * tensor_model_parallel_size
    return (vocab_size + multiple - 1) // multiple * multiple


@dataclass
class DecoderConfig(TransformerConfig):
    """A TransformerConfig with everything that a decoder of this package is made of: what the model is, not how it is
    built. Its checks wait for `finalize()`, so that fields may be set in any order.

    Beyond megatron-core's fields:

    Attributes:
        vocab_size: rows of the HF embedding, without padding.
        seq_length: positions the model is made for (HF `max_position_embeddings`).
        rope_parameters: the HF config's rope parameters; `None` for plain rope with `rotary_base`.
        pad_query_groups: add query groups (and their heads) of zeros where tensor parallelism does not divide them. The
            model computes the same, and exports leave them out.
        unpadded_query_groups: the number before padding; set by `finalize`.
        window_rope_parameters: those of layers with a sliding window, where they differ; `None` for the same.
        window_attention: values of WINDOW_ATTENTION_FIELDS that the attention of these layers has instead.
        attention_output_bias, mlp_bias: biases of these layers alone; `None` follows `add_bias_linear`.
        moe_router_renormalize: whether the scores of the chosen experts are divided by their sum; `None` is
            megatron-core's rule. This and the next two fields choose `GeneralTopKRouter`.
        moe_router_group_score: what groups of experts are chosen by, "top2_sum" or "max"; `None` is megatron-core's.
        moe_router_softmax_expert_bias: a bias on softmax scores for the choice of experts.
        moe_router_epsilon: what `GeneralTopKRouter` adds to the sum of scores that it divides by.
        lm_head_bias: bias of the output layer, one number per vocabulary entry.
        linear_out_norm_zero_centered: whether the output norms of gated delta nets hold their weight less 1, as in
            checkpoints of megatron-core's own spec. HF's are plain; weights below 0.5 are rounded by the subtraction.
        embedding_dropout: dropout of the embeddings alone; `None` follows `hidden_dropout`.
        embedding_multiplier, logits_multiplier: factors of the word embeddings and of the logits.
        residual_multiplier: factor of what attention and MLP add to the residual stream.
        final_logit_softcapping: c in `c * tanh(logits / c)`; `None` for none.
        attn_logit_softcapping: the same of attention scores, which needs megatron-core's own core attention.
        use_pre_norms, use_post_norms: norms in front of attention and MLP, and behind them.
        norm_bias: whether LayerNorms have biases.
        norm_weight_in_fp32: whether an RMSNorm's weight multiplies before the rounding to low precision.
        parallel_attention_and_mlp: both read the output of `input_layernorm`; their outputs are added together.
        qk_layernorm_scope: what `qk_layernorm` normalises: each "head", the whole "projection", or "separate_heads",
            with weights of their own; "head_after_rope" for each head after the rotary embedding.
        seed: for `provide_distributed_model` where model parallelism is not initialised yet.
        has_kv_cache: whether megatron-core's KV cache keeps all that the layers need of earlier positions.
    """

    num_layers: int = 0
    hidden_size: int = 0
    num_attention_heads: int = 0

    vocab_size: int = 0
    seq_length: int = 1024
    make_vocab_size_divisible_by: int = 128
    share_embeddings_and_output_weights: bool = False
    position_embedding_type: str = "rope"
    rotary_base: float = 10000
    rotary_percent: float = 1.0
    rope_parameters: dict[str, Any] | None = None
    window_rope_parameters: dict[str, Any] | None = None
    window_attention: dict[str, Any] | None = None
    seq_len_interpolation_factor: float | None = None
    parallel_output: bool = True
    scatter_embedding_sequence_parallel: bool = True
    fp16_lm_cross_entropy: bool = False
    pad_query_groups: bool = False
    unpadded_query_groups: int | None = None
    attention_output_bias: bool | None = None
    mlp_bias: bool | None = None
    moe_router_renormalize: bool | None = None
    moe_router_group_score: str | None = None
    moe_router_softmax_expert_bias: bool = False
    linear_out_norm_zero_centered: bool = False
    moe_router_epsilon: float = 1e-20
    lm_head_bias: bool = False
    embedding_dropout: float | None = None
    embedding_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    use_pre_norms: bool = True
    use_post_norms: bool = False
    norm_bias: bool = True
    norm_weight_in_fp32: bool = False
    parallel_attention_and_mlp: bool = False
    qk_layernorm_scope: str = "head"
    seed: int = 0
    has_kv_cache: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Nothing: megatron-core's checks run in `finalize()`, when every field has its value."""

    def finalize(self) -> None:
        """Completes and checks the config. Call after the last change; calling again is fine.

        Raises:
            UnsupportedConfigError: a value or combination that megatron-core refuses.
            ParallelLayoutError: tensor parallelism that does not divide the heads or the feed-forward size.
        """
        if not set(self.window_attention or ()) <= set(WINDOW_ATTENTION_FIELDS):
            raise UnsupportedConfigError(
                f"{type(self).__name__}: window_attention may hold {', '.join(WINDOW_ATTENTION_FIELDS)}, found "
                f"{self.window_attention!r:.300}"
            )
        self._pad_query_groups()
        self._check_tensor_parallelism()
        if self.qk_layernorm_scope not in QK_LAYERNORM_SCOPES:
            raise UnsupportedConfigError(
                f"{type(self).__name__}: qk_layernorm_scope must be one of {', '.join(QK_LAYERNORM_SCOPES)}, found "
                f"{self.qk_layernorm_scope!r}"
            )
        fit_config(self)
        if self.pipeline_model_parallel_size > 1 and self.pipeline_dtype is None:
            self.pipeline_dtype = self.params_dtype
        try:
            super().__post_init__()
        except (ValueError, AssertionError) as error:
            raise UnsupportedConfigError(
                f"{type(self).__name__}: megatron-core refuses this config: {error}"
            ) from error

    def _pad_query_groups(self) -> None:
        if not self.pad_query_groups and self.unpadded_query_groups is None:
            return
        present = self.num_query_groups or self.num_attention_heads
        heads_per_group = self.num_attention_heads // present
        groups = self.unpadded_query_groups or present
        if self.kv_channels is None:
            self.kv_channels = self.hidden_size // (groups * heads_per_group)
        tp = self.tensor_model_parallel_size if self.pad_query_groups else 1
        self.unpadded_query_groups = groups
        self.num_query_groups = (groups + tp - 1) // tp * tp
        window = (self.window_attention or {}).get("num_query_groups")
        if self.num_query_groups != groups and window not in (None, present):
            raise ParallelLayoutError(
                f"pad_query_groups: {groups} query groups cannot be padded for tensor_model_parallel_size {tp}: layers "
                f"with a sliding window have {window}; choose a size that divides the groups of both"
            )
        if window == present:
            self.window_attention = {**(self.window_attention or {}), "num_query_groups": self.num_query_groups}
        self.num_attention_heads = self.num_query_groups * heads_per_group

    def _check_tensor_parallelism(self) -> None:
        tp = self.tensor_model_parallel_size
        sizes = {
            "num_attention_heads": self.num_attention_heads,
            "num_query_groups": self.num_query_groups,
            "num_query_groups of layers with a window": (self.window_attention or {}).get("num_query_groups"),
            "ffn_hidden_size": self.ffn_hidden_size,
        }
        problems = [f"{name} is {size}" for name, size in sizes.items() if size and size % tp]
        if problems:
            raise ParallelLayoutError(
                f"tensor_model_parallel_size {tp} must divide every sharded dimension, but {', '.join(problems)}; "
                "choose another tensor_model_parallel_size, or (for heads and groups) set pad_query_groups"
            )
        pp = self.pipeline_model_parallel_size * (self.virtual_pipeline_model_parallel_size or 1)
        uneven = (
            self.num_layers_in_first_pipeline_stage
            or self.num_layers_in_last_pipeline_stage
            or self.account_for_embedding_in_pipeline_split
            or self.account_for_loss_in_pipeline_split
            or self.pipeline_model_parallel_layout
        )
        if self.num_layers % pp and not uneven:
            raise ParallelLayoutError(
                f"{self.num_layers} layers cannot be split over {pp} pipeline stages evenly; set "
                "num_layers_in_first_pipeline_stage / num_layers_in_last_pipeline_stage, or another pipeline size"
            )

    def modify_layer_spec(self, spec: "ModuleSpec") -> None:
        """Changes the spec of a layer in place: for a family whose layers have modules of their own.

        Called for each different layer spec, after everything that fields ask for.
        """

    def attention_config(self, has_window: bool) -> "DecoderConfig":
        """This config, as it is for the attention of the layers with a sliding window, or of the others."""
        if not has_window or self.window_attention is None:
            return self
        config = copy(self)
        for name, value in self.window_attention.items():
            setattr(config, name, value)
        if config.num_query_groups != self.num_query_groups:
            config.unpadded_query_groups = None  # only layers with as many groups as the others are padded
        return config

    def layer_config(self, layer_number: int) -> "DecoderConfig":
        """This config, as it is for the attention of a layer; the first has number 1."""
        return self.attention_config(self.has_window(layer_number))

    def has_window(self, layer_number: int) -> bool:
        """Whether a layer has a sliding window; the first has number 1."""
        return bool(is_layer_window_attention(self.window_size, self.window_attn_skip_freq, layer_number))

    @property
    def num_hf_query_groups(self) -> int:
        """Query groups that HF has: without those that were added for tensor parallelism."""
        return self.unpadded_query_groups or self.num_query_groups

    def head_dim(self, has_window: bool) -> int:
        """Dimensions per head of the layers with a sliding window, or of the others."""
        return self.attention_config(has_window).kv_channels

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the Megatron embedding."""
        return padded_vocab_size(self.vocab_size, self.make_vocab_size_divisible_by, self.tensor_model_parallel_size)


@dataclass
class MLADecoderConfig(DecoderConfig, MLATransformerConfig):
    """A `DecoderConfig` with multi-latent attention.

    Beyond the fields of its bases:

    Attributes:
        latent_layernorm_epsilon: of the norms of the query and key-value latents.
    """

    multi_latent_attention: bool = True
    normalization: str = "RMSNorm"
    latent_layernorm_epsilon: float = 1e-6


def set_dtype(provider: TransformerConfig, dtype: torch.dtype) -> None:
    """Makes `dtype` the dtype of parameters and computation: the flags that megatron-core keeps for it, together."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UnsupportedConfigError(f"dtype {dtype}: a Megatron model is float32, bfloat16 or float16")
    provider.bf16 = dtype == torch.bfloat16
    provider.fp16 = dtype == torch.float16
    provider.params_dtype = provider.autocast_dtype = dtype
    provider.pipeline_dtype = dtype
