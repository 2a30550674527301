"""`DecoderConfig`, which describes a decoder in the fields of a Megatron config, and `set_dtype`."""

from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypedDict

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import MLATransformerConfig, TransformerConfig
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.utils import is_layer_window_attention

from megatron.bridge.errors import ParallelLayoutError, UnsupportedConfigError
from megatron.bridge.models.transformer.parallel_rules import layout_problems
from megatron.bridge.runtime.fusions import fit_config

QK_LAYERNORM_SCOPES = ("head", "projection", "separate_heads", "head_after_rope")

# As in an HF config: `rope_type` and the numbers of that type.
type RopeParameters = dict[str, Any]


class WindowAttention(TypedDict, total=False):
    """The config fields in which the attention of layers with a sliding window may differ from that of the others."""

    kv_channels: int
    num_query_groups: int
    softmax_type: Literal["vanilla", "off-by-one", "learnable"]


WINDOW_ATTENTION_FIELDS = tuple(WindowAttention.__annotations__)

# The fields that say how a model is spread over ranks, as they are when each rank holds it whole.
UNSHARDED: dict[str, object] = {
    "tensor_model_parallel_size": 1,
    "tensor_parallel_num_weight_shards": None,
    "gtp_weight_remat_size": 1,
    "sequence_parallel": False,
    "tp_comm_overlap": False,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "microbatch_group_size_per_vp_stage": None,
    "num_layers_in_first_pipeline_stage": None,
    "num_layers_in_last_pipeline_stage": None,
    "account_for_embedding_in_pipeline_split": False,
    "account_for_loss_in_pipeline_split": False,
    "pipeline_model_parallel_layout": None,
    "mtp_standalone": False,
    "defer_embedding_wgrad_compute": False,
    "context_parallel_size": 1,
    "hierarchical_context_parallel_sizes": None,
    "hybrid_context_parallel": False,
    "cp_comm_type": None,
    "expert_model_parallel_size": 1,
    "expert_tensor_parallel_size": None,
    "expert_tensor_parallel_num_weight_shards": None,
    "expert_gtp_weight_remat_size": 1,
    "overlap_moe_expert_parallel_comm": False,
    "delay_wgrad_compute": False,
    "pad_query_groups": False,
}


def padded_vocab_size(vocab_size: int, make_vocab_size_divisible_by: int, tensor_model_parallel_size: int) -> int:
    """The number of embedding rows: `vocab_size` rounded up so that all tensor-parallel ranks get equally many.

    `padded_vocab_size(50257, 128, 2)` is 50432.
    """
    multiple = make_vocab_size_divisible_by * tensor_model_parallel_size
    return (vocab_size + multiple - 1) // multiple * multiple


@dataclass
class DecoderConfig(TransformerConfig):
    """A TransformerConfig that describes everything a decoder of this package is made of, but not how it is built.

    Its checks wait for `finalize()`, so that fields may be set in any order. Beyond megatron-core's fields:

    Attributes:
        vocab_size: the rows of the HF embedding, without padding.
        seq_length: the number of positions that the model is made for (HF `max_position_embeddings`).
        rope_parameters: the HF config's rope parameters, without those that are `rotary_base` and `rotary_percent`;
            `None` for plain rope.
        pad_query_groups: add query groups (and their heads) of zeros where tensor parallelism does not divide them. The
            model computes the same, and exports leave them out.
        unpadded_query_groups: the number before padding; set by `finalize`.
        window_rope_parameters: those of layers with a sliding window, with their `rope_theta`, if they differ; `None`
            if they do not.
        window_attention: what the attention of layers with a sliding window has in place of this config's fields.
        attention_output_bias: whether attention's output projection has a bias; `None` follows `add_bias_linear`.
        mlp_bias: whether the MLP's linear layers have biases; `None` follows `add_bias_linear`.
        moe_router_renormalize: whether the scores of the chosen experts are divided by their sum; `None` follows
            megatron-core's rule. This and the next two fields choose `GeneralTopKRouter`.
        moe_router_group_score: what groups of experts are chosen by, "top2_sum" or "max"; `None`: megatron-core's rule.
        moe_router_softmax_expert_bias: add a bias to softmax scores when experts are chosen.
        moe_router_epsilon: what `GeneralTopKRouter` adds to the sum of scores before dividing by it.
        lm_head_bias: give the output layer a bias, one number per vocabulary entry.
        linear_out_norm_zero_centered: whether the output norms of gated delta nets hold their weight minus 1, as in
            checkpoints of megatron-core's own spec. HF's are plain; the subtraction rounds weights below 0.5.
        embedding_dropout: dropout of the embeddings alone; `None` follows `hidden_dropout`.
        embedding_multiplier, logits_multiplier: factors of the word embeddings and of the logits.
        residual_multiplier: factor of what attention and MLP add to the residual stream.
        final_logit_softcapping: c in `c * tanh(logits / c)`; `None` for none.
        attn_logit_softcapping: the same for attention scores; needs megatron-core's own core attention.
        use_pre_norms, use_post_norms: whether there are norms before attention and MLP, and after them.
        norm_bias: whether LayerNorms have biases.
        norm_weight_in_fp32: whether an RMSNorm's weight multiplies before the rounding to low precision.
        parallel_attention_and_mlp: both read the output of `input_layernorm`, and their outputs are added together.
        qk_layernorm_scope: what `qk_layernorm` normalises: each "head"; the whole "projection"; "separate_heads", each
            with weights of its own; or "head_after_rope", each head after the rotary embedding.
        model_class: the class of megatron-core's that the decoder is built as: GPTModel ("gpt") or HybridModel.
        hybrid_layers: of a HybridModel: "split" makes two of the stack's layers of each of the decoder's, attention and
            then its MLP; "whole" one. `num_layers` counts the decoder's in either case. Those of a class of their own,
            such as layers whose attention and MLP are parallel, are always whole.
        seed: for `provide_distributed_model`, if model parallelism is not initialised yet.
        has_own_pattern: whether the model's layers are those of a HybridStack, which no GPTModel could be; not a field.
        has_relative_positions: whether attention depends only on how far tokens are apart, not on where they stand.
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
    rope_parameters: RopeParameters | None = None
    window_rope_parameters: RopeParameters | None = None
    window_attention: WindowAttention | None = None
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
    model_class: Literal["gpt", "hybrid"] = "gpt"
    hybrid_layers: Literal["split", "whole"] = "split"
    has_own_pattern: ClassVar[bool] = False
    has_relative_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Does nothing: megatron-core's checks run in `finalize()`, when every field has its value."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A deep copy that shares what belongs to this process: process groups, and functions with what they hold.

        megatron-core copies the config in some layers. Process groups cannot be copied, and a function may be bound to
        the model or to the weights to load.
        """
        copied = memo[id(self)] = copy(self)
        for name, value in vars(self).items():
            if not (name.startswith("_") or callable(value) or isinstance(value, ProcessGroupCollection)):
                setattr(copied, name, deepcopy(value, memo))
        return copied

    def finalize(self) -> None:
        """Completes and checks the config. Call it after the last change; it may be called again.

        Raises:
            UnsupportedConfigError: megatron-core refuses a value or a combination of values.
            ParallelLayoutError: a parallel size does not divide what it splits (heads, widths, experts, layers).
        """
        if not set(self.window_attention or ()) <= set(WINDOW_ATTENTION_FIELDS):
            raise UnsupportedConfigError(
                f"{type(self).__name__}: window_attention may hold {', '.join(WINDOW_ATTENTION_FIELDS)}, found "
                f"{self.window_attention!r:.300}"
            )
        if isinstance(self.moe_layer_freq, int) and self.moe_layer_freq < 1:
            raise UnsupportedConfigError(
                f"{type(self).__name__}: moe_layer_freq must be at least 1, found {self.moe_layer_freq}; for a model "
                "without experts, set num_moe_experts to None"
            )
        theta = (self.rope_parameters or {}).get("rope_theta", self.rotary_base)
        if theta != self.rotary_base:
            raise UnsupportedConfigError(
                f"{type(self).__name__}: rope_parameters holds rope_theta {theta!r:.100}, but rotary_base is "
                f"{self.rotary_base}; set rotary_base, and leave rope_theta out of rope_parameters"
            )
        self._pad_query_groups()
        problems = layout_problems(vars(self))
        if problems:
            hint = "; pad_query_groups allows any tp for heads and groups" if "num_query_groups" in problems[0] else ""
            raise ParallelLayoutError(f"{type(self).__name__}: {'; '.join(problems)}{hint}")
        classes = ("hybrid",) if self.has_own_pattern else ("gpt", "hybrid")
        for name, known in (("model_class", classes), ("hybrid_layers", ("split", "whole"))):
            if getattr(self, name) not in known:
                raise UnsupportedConfigError(
                    f"{type(self).__name__}: {name} must be {' or '.join(known)}, found {getattr(self, name)!r}"
                )
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
        except (ValueError, AssertionError, NotImplementedError) as error:
            layout = self.pipeline_model_parallel_layout
            given = f" (with pipeline_model_parallel_layout {layout!s:.300})" if layout is not None else ""
            raise UnsupportedConfigError(
                f"{type(self).__name__}: megatron-core refuses this config{given}: {error}"
            ) from error
        stages = self.pipeline_model_parallel_layout
        if not isinstance(stages, PipelineParallelLayerLayout) or self.pipeline_model_parallel_size == 1:
            return
        if any(LayerType.mtp in stage for stage in stages.layout[0]):
            raise ParallelLayoutError(
                f"pipeline_model_parallel_layout {stages!s:.300}: the first pipeline rank has prediction layers, but "
                "megatron-core cannot build them beside the embedding; put them on another rank"
            )

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

    def reset_layout(self) -> None:
        """Sets what says how the model is spread over ranks (`UNSHARDED`) as for a model that each rank holds whole."""
        for name, value in UNSHARDED.items():
            setattr(self, name, value)

    def modify_layer_spec(self, spec: ModuleSpec) -> None:
        """Changes the spec of a layer in place, for a family whose layers have modules of their own.

        Called once for each different layer spec, after everything that fields ask for is in it.
        """

    def attention_config(self, has_window: bool) -> Self:
        """This config as the attention of layers with a sliding window sees it, or that of the others."""
        if not has_window or self.window_attention is None:
            return self
        config = copy(self)
        for name, value in self.window_attention.items():
            setattr(config, name, value)
        if config.num_query_groups != self.num_query_groups:
            config.unpadded_query_groups = None  # layers are padded only if they have as many groups as the others
        return config

    def layer_config(self, layer_number: int) -> Self:
        """This config as the attention of a layer sees it; layers are numbered from 1."""
        return self.attention_config(self.has_window(layer_number))

    def has_window(self, layer_number: int) -> bool:
        """Whether a layer has a sliding window; layers are numbered from 1."""
        skip_freq = self.window_attn_skip_freq
        return is_layer_window_attention(self.window_size, skip_freq, layer_number)  # type: ignore[arg-type]  # or None

    @property
    def num_hf_query_groups(self) -> int:
        """The number of query groups that HF has, without those that were added for tensor parallelism."""
        return self.unpadded_query_groups or self.num_query_groups or self.num_attention_heads

    def whole_rope_parameters(self, has_window: bool) -> RopeParameters:
        """The rope parameters as an HF config states them, in the layers with a sliding window or in the others."""
        own = self.window_rope_parameters if has_window else None
        parameters = {"rope_type": "default", "rope_theta": self.rotary_base, **(own or self.rope_parameters or {})}
        if parameters["rope_type"] != "proportional" and self.rotary_percent != 1.0:
            parameters["partial_rotary_factor"] = self.rotary_percent
        return parameters

    def head_dim(self, has_window: bool) -> int:
        """Dimensions per head, in the layers with a sliding window or in the others."""
        num_dims = self.attention_config(has_window).kv_channels
        assert num_dims is not None, "finalize() sets it"
        return num_dims

    @property
    def padded_vocab_size(self) -> int:
        """The rows of the Megatron embedding."""
        return padded_vocab_size(self.vocab_size, self.make_vocab_size_divisible_by, self.tensor_model_parallel_size)


@dataclass
class MLADecoderConfig(DecoderConfig, MLATransformerConfig):
    """A `DecoderConfig` with multi-latent attention.

    Beyond the fields of its bases:

    Attributes:
        latent_layernorm_epsilon: the epsilon of the norms of the query and key-value latents.
    """

    multi_latent_attention: bool = True
    normalization: str = "RMSNorm"
    latent_layernorm_epsilon: float = 1e-6


def set_dtype(provider: TransformerConfig, dtype: torch.dtype) -> None:
    """Makes `dtype` the dtype of parameters and computation, by setting all the flags that megatron-core has for it.

    Raises:
        UnsupportedConfigError: a dtype that Megatron models cannot have.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UnsupportedConfigError(f"dtype {dtype}: a Megatron model is float32, bfloat16 or float16")
    provider.bf16 = dtype == torch.bfloat16
    provider.fp16 = dtype == torch.float16
    provider.params_dtype = provider.autocast_dtype = dtype
    provider.pipeline_dtype = dtype
