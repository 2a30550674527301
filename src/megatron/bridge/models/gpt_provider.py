"""`GPTModelProvider`: a Megatron config that can build its model."""

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

from megatron.bridge.models.model_provider import ModelProviderMixin
from megatron.bridge.models.transformer.decoder_config import DecoderConfig, padded_vocab_size, set_dtype
from megatron.bridge.models.transformer.gpt_model import GPTModel
from megatron.bridge.models.transformer.layer_specs import (
    DecoderSpec,
    DecoderSpecBuilder,
    built_spec,
    default_layer_spec,
    local_layer_spec,
    mtp_block_spec,
    transformer_engine_layer_spec,
)
from megatron.bridge.models.transformer.rotary import apply_rope_parameters

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
        model_class: the class of the model; not a field.
        transformer_layer_spec: a spec, or a function of the provider (and of `vp_stage`, if it has such a parameter)
            that makes one.
    """

    model_class: ClassVar[type[GPTModel]] = GPTModel

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
        layer_spec = self._layer_spec(vp_stage)
        model = self.model_class(
            transformer_layer_spec=layer_spec,
            mtp_block_spec=mtp_block_spec(self, layer_spec, vp_stage),
            **self._model_arguments(pre_process, post_process, vp_stage),
        )
        apply_rope_parameters(model)
        return model

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
