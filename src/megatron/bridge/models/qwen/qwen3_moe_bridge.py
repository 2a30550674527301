"""Qwen3 mixture of experts."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.qwen.qwen3_bridge import Qwen3Bridge


@MegatronModelBridge.register_bridge(source="Qwen3MoeForCausalLM", target="GPTModel", model_type="qwen3_moe")
class Qwen3MoeBridge(Qwen3Bridge):
    """Like Qwen3, with experts in some or all layers; the softmax comes before or after the choice of experts."""

    CONFIG = (*Qwen3Bridge.CONFIG, fields.experts(), fields.SPARSE_STEPS, fields.fixed(use_qk_norm=True))

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(*super().mapping_registry().entries, *blocks.moe())
