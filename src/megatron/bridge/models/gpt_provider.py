"""`GPTModelProvider`: a Megatron config that can build its model."""

from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.pipeline_parallel.utils import (
    is_pp_first_stage,
    is_pp_last_stage,
    is_vp_first_stage,
    is_vp_last_stage,
)
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    LayerNormImpl,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron.bridge.models.model_provider import ModelProviderMixin
from megatron.bridge.models.transformer import hybrid_layers
from megatron.bridge.models.transformer.decoder_config import DecoderConfig, padded_vocab_size, set_dtype
from megatron.bridge.models.transformer.gpt_model import GPTModel
from megatron.bridge.models.transformer.hybrid_model import HybridModel
from megatron.bridge.models.transformer.layer_specs import (
    DecoderSpec,
    DecoderSpecBuilder,
    built_spec,
    default_layer_spec,
    local_layer_spec,
    mtp_block_spec,
    prediction_layer_spec,
    transformer_engine_layer_spec,
)
from megatron.bridge.models.transformer.rotary import apply_rope_parameters
from megatron.bridge.models.transformer.sparse_attention import check_index_sharing

__all__ = [
    "GPTModelProvider",
    "default_layer_spec",
    "local_layer_spec",
    "padded_vocab_size",
    "set_dtype",
    "transformer_engine_layer_spec",
]


@dataclass
class GPTModelProvider(ModelProviderMixin[LanguageModule], DecoderConfig):
    """A `DecoderConfig` that builds a GPTModel.

    Attributes:
        gpt_class, hybrid_class: what `model_class` stands for; not fields.
        transformer_layer_spec: a spec, or a function of the provider (and of `vp_stage`, if it has such a parameter)
            that makes one.
    """

    gpt_class: ClassVar[type[GPTModel]] = GPTModel
    hybrid_class: ClassVar[type[HybridModel]] = HybridModel

    transformer_layer_spec: DecoderSpec | DecoderSpecBuilder = field(default=default_layer_spec)

    def provide(
        self, pre_process: bool | None = None, post_process: bool | None = None, vp_stage: int | None = None
    ) -> LanguageModule:
        """Builds this rank's part of the model, with weights as megatron-core initialises them.

        Args:
            pre_process, post_process: whether this stage has the embedding and the output layer; default: according to
                the pipeline rank and `vp_stage`.
            vp_stage: the index of the model chunk on this rank.
        """
        model: GPTModel | HybridModel
        if self.experimental_attention_variant == "dsa":
            first = get_transformer_layer_offset(self, vp_stage=vp_stage)
            check_index_sharing(self, first, get_num_layers_to_build(self, vp_stage=vp_stage))
        arguments = self._model_arguments(pre_process, post_process, vp_stage)
        if self.model_class == "hybrid":
            model = self._hybrid_model(arguments)
        else:
            layer_spec = self._layer_spec(vp_stage)
            prediction = mtp_block_spec(self, layer_spec, vp_stage)
            model = self.gpt_class(transformer_layer_spec=layer_spec, mtp_block_spec=prediction, **arguments)
        apply_rope_parameters(model)
        return model

    def _hybrid_model(self, arguments: dict[str, Any]) -> HybridModel:
        """This rank's part of the model as a HybridModel, given the arguments of every language model."""
        whole = copy(self)
        whole.reset_layout()  # the spec of a stack is that of all layers
        block = built_spec(self.transformer_layer_spec, whole, None)
        if isinstance(block, ModuleSpec):
            norm: Any = LayerNormImpl  # as a TransformerBlock chooses it
            block = TransformerBlockSubmodules(layer_specs=[block] * self.num_layers, layer_norm=norm)
        specs = block.layer_specs or []
        prediction = prediction_layer_spec(self, specs[-1]) if self.mtp_num_layers else None
        return self.hybrid_class(
            hybrid_stack_spec=hybrid_layers.stack_spec(self, block, prediction),
            hybrid_layer_pattern=hybrid_layers.layer_pattern(self, specs, prediction),
            letters_per_layer=2 if hybrid_layers.are_split(self, specs) else 1,
            **arguments,
        )

    def _model_arguments(
        self, pre_process: bool | None, post_process: bool | None, vp_stage: int | None
    ) -> dict[str, Any]:
        """The arguments that every language model of megatron-core is built with."""
        groups = self._pg_collection or ProcessGroupCollection.use_mpu_process_groups(["pp"])
        num_stages = self.virtual_pipeline_model_parallel_size
        if pre_process is None:
            pre_process = is_vp_first_stage(vp_stage or 0, num_stages) and is_pp_first_stage(groups.pp)
        if post_process is None:
            post_process = is_vp_last_stage(vp_stage or 0, num_stages) and is_pp_last_stage(groups.pp)
        return {
            "config": self,
            "vocab_size": self.padded_vocab_size,
            "max_sequence_length": self.seq_length,
            "pre_process": pre_process,
            "post_process": post_process,
            "fp16_lm_cross_entropy": self.fp16_lm_cross_entropy,
            "parallel_output": self.parallel_output,
            "share_embeddings_and_output_weights": self.share_embeddings_and_output_weights,
            "position_embedding_type": self.position_embedding_type,
            "rotary_percent": self.rotary_percent,
            "rotary_base": self.rotary_base,
            "scatter_embedding_sequence_parallel": self.scatter_embedding_sequence_parallel,
            "seq_len_interpolation_factor": self.seq_len_interpolation_factor,
            "pg_collection": self._pg_collection,
            "vp_stage": vp_stage,
        }

    def _layer_spec(self, vp_stage: int | None) -> DecoderSpec:
        return built_spec(self.transformer_layer_spec, self, vp_stage)
