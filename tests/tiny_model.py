"""A tiny model: built by transformers, with every parameter random, at widths where nothing is accidentally equal."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers

BASE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}

# What many families have as variants.
BIAS = {"attention_bias": True}
TIED = {"tie_word_embeddings": True}


def rope(rope_type: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **parameters}}


@dataclass(frozen=True)
class TinyModel:
    """A variant of a family.

    Attributes:
        name: of the test case.
        architecture: HF model class.
        config: differences from `BASE`.
        seq_length: of the compared sequences.
        splits_experts: whether megatron-core can cut single experts over ranks (not with biases).
        seed: of the weights; another than 0 where, with 0, two experts' scores for some token are equal up to rounding.
        config_json: fields that `config.json` has instead, for models that transformers knows by another name.
    """

    name: str
    architecture: str
    config: dict[str, Any] = field(default_factory=dict)
    seq_length: int = 40
    splits_experts: bool = True
    seed: int = 0
    config_json: dict[str, Any] = field(default_factory=dict)

    # Whether only the folder's own code has the config class.
    trust_remote_code: ClassVar[bool] = False

    @property
    def is_moe(self) -> bool:
        """Whether the model has experts, and so layouts that cut them."""
        return any("experts" in name for name in self.config)

    @property
    def published_architecture(self) -> str:
        """The architecture that `config.json` names."""
        return self.config_json.get("architectures", [self.architecture])[0]

    def hf_config(self) -> transformers.PretrainedConfig:
        model_class = getattr(transformers, self.architecture)
        config_class = model_class.config_class
        names = {*dir(config_class), *config_class.attribute_map}  # Mamba-2 has no attention heads
        base = {name: value for name, value in BASE.items() if name in names}
        return config_class(**{**base, **self.config}, architectures=[self.published_architecture])

    def empty_model(self) -> transformers.PreTrainedModel:
        """The model on the meta device: names and shapes."""
        with torch.device("meta"):
            return getattr(transformers, self.architecture)(self.hf_config())

    def hf_model(self, seed: int | None = None) -> transformers.PreTrainedModel:
        """The model in float32, eval mode and eager attention."""
        config = self.hf_config()
        config._attn_implementation = "eager"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # `randomize` adds to what vectors were, which for attention sinks is random too
            model = getattr(transformers, self.architecture)(config).float().eval()
        randomize(model, self.seed if seed is None else seed)
        return model

    def save(
        self, folder: Path, dtype: torch.dtype = torch.float32, seed: int | None = None
    ) -> transformers.PreTrainedModel:
        """Saves the model as an HF folder and returns it (its weights rounded to `dtype`)."""
        model = self.hf_model(seed).to(dtype)
        model.save_pretrained(folder)
        if self.config_json:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **self.config_json}, indent=2))
        return model


# Buffers that checkpoints carry.
STORED_BUFFERS = ("e_score_correction_bias", "expert_bias", "layer_scalar")


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Random values for every parameter (and buffer like one): matrices around 0, vectors around what they were."""
    generator = torch.Generator().manual_seed(seed)
    buffers = [buffer for name, buffer in model.named_buffers() if name.endswith(STORED_BUFFERS)]
    with torch.no_grad():
        for tensor in [*model.parameters(), *buffers]:
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(tensor + 0.2 * noise if tensor.dim() == 1 else 0.08 * noise)
