"""Stands in for the config class that Ling's folders bring with them."""

from typing import Any

from transformers import PretrainedConfig


class BailingMoeV2Config(PretrainedConfig):
    """Ling's config: fields that are given, and rope as transformers 4 wrote it."""

    model_type = "bailing_moe"

    def __init__(self, rope_theta: float = 600000.0, partial_rotary_factor: float = 0.5, **kwargs: Any) -> None:
        self.rope_theta = rope_theta
        self.partial_rotary_factor = partial_rotary_factor
        super().__init__(**kwargs)
