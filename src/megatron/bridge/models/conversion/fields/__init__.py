"""Configs as data: parts that describe groups of config fields in both directions, for families to choose from."""

from megatron.bridge.models.conversion.fields.activations import *
from megatron.bridge.models.conversion.fields.common import *
from megatron.bridge.models.conversion.fields.latent_attention import *
from megatron.bridge.models.conversion.fields.mixers import *
from megatron.bridge.models.conversion.fields.moe import *
from megatron.bridge.models.conversion.fields.part import *
from megatron.bridge.models.conversion.fields.prediction import *
from megatron.bridge.models.conversion.fields.rope import *
from megatron.bridge.models.conversion.fields.windows import *
