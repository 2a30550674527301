"""Shared blocks: the mappings of the usual pieces of a model. Nowhere else are the names of their weights spelled out.

A block is a function that returns mappings, given a few choices that the family reads from the HF config. `hf` is the
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
