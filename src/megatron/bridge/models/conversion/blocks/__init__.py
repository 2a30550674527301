"""Shared blocks: the mappings of a usual layer's parts. The only place where their weight names are typed.

A block is a function of a few choices (read from the HF config by the family) that returns mappings. `hf` is the
HF name of the module, with `*` for the layer number; Megatron names are those of the Transformer Engine spec.
"""

from megatron.bridge.models.conversion.blocks.ends import *
from megatron.bridge.models.conversion.blocks.experts import *
from megatron.bridge.models.conversion.blocks.mixers import *
from megatron.bridge.models.conversion.blocks.mlps import *
from megatron.bridge.models.conversion.blocks.names import *
from megatron.bridge.models.conversion.blocks.norms import *
from megatron.bridge.models.conversion.blocks.prediction import *
from megatron.bridge.models.conversion.blocks.self_attention import *
