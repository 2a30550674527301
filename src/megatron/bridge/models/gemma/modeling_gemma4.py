"""Gemma 4's provider, which puts the modules of its layers into their spec."""

from dataclasses import dataclass
from typing import ClassVar

from megatron.core.transformer.spec_utils import ModuleSpec

from megatron.bridge.models.gemma.modeling_gemma4_config import Gemma4Config
from megatron.bridge.models.gemma.modeling_gemma4_layer import Gemma4SelfAttention, Gemma4TransformerLayer
from megatron.bridge.models.gemma.modeling_gemma4_moe import make_experts_parallel
from megatron.bridge.models.gemma.modeling_gemma4_per_layer import Gemma4HybridModel, Gemma4Model
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.transformer.gpt_model import GPTModel
from megatron.bridge.models.transformer.hybrid_model import HybridModel
from megatron.bridge.models.transformer.layer_specs import attention_spec, layer_submodules


@dataclass
class Gemma4Provider(Gemma4Config, GPTModelProvider):
    """A `Gemma4Config` that builds its model."""

    gpt_class: ClassVar[type[GPTModel]] = Gemma4Model
    hybrid_class: ClassVar[type[HybridModel]] = Gemma4HybridModel

    def modify_layer_spec(self, spec: ModuleSpec) -> None:
        spec.module = Gemma4TransformerLayer
        attention_spec(spec).module = Gemma4SelfAttention
        if self.num_moe_experts is not None:
            make_experts_parallel(layer_submodules(spec))
