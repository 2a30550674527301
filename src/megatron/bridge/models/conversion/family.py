"""What a family's file imports: the base class, the registry, and the blocks and parts that both are made of."""

from megatron.bridge.models.conversion import blocks, fields
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

__all__ = ["MegatronMappingRegistry", "MegatronModelBridge", "blocks", "fields"]
