"""`HybridProvider`: the config of a model whose layers are Mamba-2, attention, MLPs or mixtures of experts."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from megatron.core.extensions import transformer_engine
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.hybrid.hybrid_block import HybridStackSubmodules
from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
from megatron.core.ssm.mlp_layer import MLPLayer
from megatron.core.transformer.identity_op import IdentityFuncOp, IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import MoETransformerLayer

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.transformer import layer_specs
from megatron.bridge.models.transformer.hybrid_model import HybridModel
from megatron.bridge.models.transformer.hybrid_stack import HybridStack
from megatron.bridge.models.transformer.mamba_mixer import MambaMixer, mixer_linears
from megatron.bridge.models.transformer.rotary import apply_rope_parameters
from megatron.bridge.runtime import capabilities
from megatron.bridge.runtime.norm import TorchNorm

_LETTERS = "M*-E"


def hybrid_stack_spec(config: "HybridProvider") -> ModuleSpec:
    """The spec of the whole stack, with one for each kind of layer, made of what the machine offers."""
    use_transformer_engine = capabilities.has_transformer_engine()
    layer_spec = layer_specs.transformer_engine_layer_spec if use_transformer_engine else layer_specs.local_layer_spec
    attention, mlp = (layer_spec(config, is_moe=False) for _ in range(2))
    parts = layer_specs.layer_submodules(attention)
    parts.mlp = parts.pre_mlp_layernorm = IdentityOp
    parts.mlp_bda = IdentityFuncOp
    mlp.module = MLPLayer
    layers = {"mlp_layer": mlp}
    if config.num_moe_experts is not None:
        layers["moe_layer"] = layer_spec(config, is_moe=True)
        layers["moe_layer"].module = MoETransformerLayer
    for spec in layers.values():
        parts = layer_specs.layer_submodules(spec)
        parts.input_layernorm = parts.self_attention = IdentityOp
        parts.self_attn_bda = IdentityFuncOp
    mixer = ModuleSpec(
        module=MambaMixer,
        params={"chunk_size": config.mamba_chunk_size, "dt_min": config.mamba_dt_min},
        submodules=mixer_linears(norm_in_projection=True),
    )
    mamba = MambaLayerSubmodules(
        norm=IdentityOp if use_transformer_engine else TorchNorm,
        mixer=mixer,
        mamba_bda=get_bias_dropout_add,  # type: ignore[arg-type]  # as in megatron-core's own spec
        # With Transformer Engine, the norm is part of the projection.
        sharded_state_dict_keys_map={} if use_transformer_engine else {"norm.": "mixer.in_proj.layer_norm_"},
    )
    return ModuleSpec(
        module=HybridStack,
        params={"norm": transformer_engine.TENorm if use_transformer_engine else TorchNorm},
        submodules=HybridStackSubmodules(
            mamba_layer=ModuleSpec(module=MambaLayer, submodules=mamba),
            attention_layer=attention,
            mtp_block_spec=layer_specs.hybrid_mtp_block_spec(),
            **layers,
        ),
    )


@dataclass
class HybridProvider(GPTModelProvider):
    """A provider of megatron-core's HybridModel, with the fields of `GPTModelProvider` and the following.

    Attributes:
        hybrid_layer_pattern: a letter per layer: M (Mamba-2), * (attention), - (MLP), E (experts). Pipeline stages get
            equal numbers of layers, unless they are separated by |. "M*-M*-" is two rounds of three layers.
        mtp_hybrid_override_pattern: the same letters, for each multi-token prediction layer (`mtp_num_layers`).
        mamba_chunk_size: how many positions a scan computes at once; changes nothing but rounding.
        mamba_dt_min: the smallest step size.
    """

    hybrid_layer_pattern: str = ""
    mtp_hybrid_override_pattern: str | None = None
    mamba_chunk_size: int = 128
    mamba_dt_min: float = 0.0
    model_class: Literal["gpt", "hybrid"] = "hybrid"
    is_hybrid_model: bool = True
    position_embedding_type: str = "none"
    has_own_pattern: ClassVar[bool] = True
    transformer_layer_spec: layer_specs.DecoderSpec | layer_specs.DecoderSpecBuilder = field(default=hybrid_stack_spec)

    def finalize(self) -> None:
        """Like `GPTModelProvider.finalize`.

        Raises:
            UnsupportedConfigError: a pattern does not describe `num_layers` layers.
        """
        pattern = self.hybrid_layer_pattern.replace("|", "")
        predicted = self.mtp_hybrid_override_pattern or ""
        if self.mtp_num_layers and (not predicted or set(predicted) - set(_LETTERS)):
            raise UnsupportedConfigError(
                "HybridProvider: mtp_hybrid_override_pattern: expected letters of M, *, -, E for mtp_num_layers "
                f"{self.mtp_num_layers}, found {self.mtp_hybrid_override_pattern!r}; set it, or mtp_num_layers=None"
            )
        if len(pattern) != self.num_layers or set(pattern) - set(_LETTERS):
            raise UnsupportedConfigError(
                f"HybridProvider: hybrid_layer_pattern: expected {self.num_layers} letters of M, *, -, E, "
                f"found {self.hybrid_layer_pattern!r}"
            )
        super().finalize()

    def reset_layout(self) -> None:
        """Like `DecoderConfig.reset_layout`; takes the ends of pipeline stages out of the pattern."""
        super().reset_layout()
        self.hybrid_layer_pattern = self.hybrid_layer_pattern.replace("|", "")

    def provide(
        self, pre_process: bool | None = None, post_process: bool | None = None, vp_stage: int | None = None
    ) -> HybridModel:
        """Builds this rank's part of the model, as `GPTModelProvider.provide` does."""
        stack_spec = self._layer_spec(vp_stage)
        assert isinstance(stack_spec, ModuleSpec)
        model = HybridModel(
            hybrid_stack_spec=stack_spec,
            hybrid_layer_pattern=self._whole_pattern(),
            **self._model_arguments(pre_process, post_process, vp_stage),
        )
        if self.position_embedding_type == "rope":
            apply_rope_parameters(model)
        return model

    def _pattern_by_stage(self) -> str:
        """The pattern, with the ends of pipeline stages if these are equal."""
        num_stages = self.pipeline_model_parallel_size * (self.virtual_pipeline_model_parallel_size or 1)
        pattern = self.hybrid_layer_pattern
        if "|" in pattern or self.num_layers % num_stages or self.num_layers_in_first_pipeline_stage is not None:
            return pattern
        if self.num_layers_in_last_pipeline_stage is not None:
            return pattern
        size = self.num_layers // num_stages
        return "|".join(pattern[start : start + size] for start in range(0, self.num_layers, size))

    def _whole_pattern(self) -> str:
        """The pattern that megatron-core is given, which has a part for each prediction layer."""
        return "/".join(
            [self._pattern_by_stage(), *[self.mtp_hybrid_override_pattern or ""] * (self.mtp_num_layers or 0)]
        )
