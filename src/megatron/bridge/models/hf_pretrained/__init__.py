"""The Hugging Face side: finding a model, reading its config, reading and writing its weights, its other files."""

from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM
from megatron.bridge.models.hf_pretrained.hf_model import HFModel
from megatron.bridge.models.hf_pretrained.safetensors_format import TensorInfo
from megatron.bridge.models.hf_pretrained.source import SafetensorsSource
from megatron.bridge.models.hf_pretrained.writer import SafetensorsWriter, plan_shards

__all__ = ["HFModel", "PreTrainedCausalLM", "SafetensorsSource", "SafetensorsWriter", "TensorInfo", "plan_shards"]
