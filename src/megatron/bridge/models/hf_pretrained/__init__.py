"""The Hugging Face side: finding a model, its config, reading and writing its weights, its other files."""

from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM
from megatron.bridge.models.hf_pretrained.source import SafetensorsSource, TensorInfo
from megatron.bridge.models.hf_pretrained.writer import SafetensorsWriter, plan_shards

__all__ = ["PreTrainedCausalLM", "SafetensorsSource", "SafetensorsWriter", "TensorInfo", "plan_shards"]
