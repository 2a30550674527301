"""Rotary embeddings with every scaling that transformers offers.

megatron-core has formulas of its own for some scalings, in which some numbers are fixed (llama3), and lacks other
scalings (dynamic, longrope). So the frequencies are taken from transformers' `ROPE_INIT_FUNCTIONS`, which define what
the published checkpoints mean; only the default, unscaled kind is left to megatron-core.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.attention import Attention

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.transformer.decoder_config import DecoderConfig, RopeParameters
from megatron.bridge.models.transformer.layer_rope import LayerRotaryEmbedding

if TYPE_CHECKING:
    from megatron.core.inference.contexts import BaseInferenceContext
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.hybrid.hybrid_model import HybridModel
    from transformers import LlamaConfig

# The attribute of attention modules by which megatron-core scales cos and sin.
_SCALING = "_yarn_concentration_factor"
# Kinds whose frequencies depend on the length of the sequence.
_LENGTH_DEPENDENT = ("dynamic", "longrope")


def _rope_config(rope_parameters: RopeParameters, head_dim: int, max_position_embeddings: int) -> "LlamaConfig":
    """A config of a model with nothing but the fields that transformers' rope functions read."""
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        head_dim=head_dim,
        max_position_embeddings=max_position_embeddings,
        rope_parameters=dict(rope_parameters),
    )


def attention_scaling(rope_parameters: RopeParameters, head_dim: int, max_position_embeddings: int) -> float:
    """The factor of cos and sin: 1.139 for `{"rope_type": "yarn", "factor": 4.0, ...}`, 1.0 for most kinds."""
    kind = rope_parameters.get("rope_type", "default")
    if kind == "default":
        return 1.0
    config = _rope_config(rope_parameters, head_dim, max_position_embeddings)
    with torch.device("cpu"):  # the model may be on its way to the meta device
        return float(_rope_init(kind)(config)[1])


def _ntk_alpha(config: "LlamaConfig", seq_len: torch.Tensor | None = None) -> tuple[torch.Tensor, float]:
    """Frequencies of a base that `alpha` stretches once and for all (transformers 5.23, HunYuan)."""
    parameters: Any = config.rope_parameters
    dim = config.head_dim
    assert dim is not None
    base = parameters["rope_theta"] * parameters["alpha"] ** (dim / (dim - 2))
    return 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)), 1.0


def _rope_init(kind: str) -> Callable[..., tuple[torch.Tensor, float]]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if kind == "ntk_alpha":
        return _ntk_alpha
    if kind not in ROPE_INIT_FUNCTIONS:
        raise UnsupportedConfigError(
            f"rope_parameters: rope_type {kind!r} is unknown to the installed transformers; known: "
            f"default, {', '.join(sorted(ROPE_INIT_FUNCTIONS))}"
        )
    return ROPE_INIT_FUNCTIONS[kind]


class ScaledRotaryEmbedding(RotaryEmbedding):
    """A rotary embedding with a Hugging Face scaling.

    Args:
        rope_parameters: as in the HF config: `rope_type`, `rope_theta` and the numbers of that kind.
        head_dim: dimensions per head.
        max_position_embeddings: the HF config's; some kinds scale relative to it.
        kwargs: passed to megatron-core's `RotaryEmbedding`.

    Source: transformers 5, `modeling_rope_utils.py`.
    """

    def __init__(
        self, rope_parameters: RopeParameters, head_dim: int, max_position_embeddings: int, **kwargs: Any
    ) -> None:
        super().__init__(kv_channels=head_dim, rotary_base=int(rope_parameters["rope_theta"]), **kwargs)
        self.kind: str = rope_parameters["rope_type"]
        self.hf_config = _rope_config(rope_parameters, head_dim, max_position_embeddings)
        # The length beyond which a length-dependent kind changes its frequencies.
        self._threshold = max_position_embeddings
        if self.kind == "longrope":
            self._threshold = rope_parameters.get("original_max_position_embeddings", max_position_embeddings)
        self.inv_freq = self._frequencies(1)

    def _frequencies(self, seq_len: int) -> torch.Tensor:
        """Inverse frequencies, `[head_dim / 2]` (or fewer, if only part of each head is rotated)."""
        is_past_threshold = self.kind in _LENGTH_DEPENDENT and seq_len > self._threshold
        length = torch.tensor(seq_len, device="cpu") if is_past_threshold else None
        # On the CPU, as HF does: the same frequencies on every machine, even while the model is on the meta device.
        with torch.device("cpu"):
            return _rope_init(self.kind)(self.hf_config, seq_len=length)[0]

    def get_rotary_seq_len(self, inference_context: "BaseInferenceContext | None", *args: Any, **kwargs: Any) -> int:
        """The number of positions to compute; with a KV cache, one that has the frequencies of the length in use."""
        count: Callable[..., int] = super().get_rotary_seq_len
        num_positions = count(inference_context, *args, **kwargs)
        if inference_context is None or self.kind not in _LENGTH_DEPENDENT:
            return num_positions
        offset: int = inference_context.sequence_len_offset  # type: ignore[attr-defined]  # the context is a static one
        num_used = offset + count(None, *args, **kwargs)
        if num_used <= self._threshold:
            return min(num_positions, self._threshold)
        return num_used if self.kind == "dynamic" else num_positions

    @property
    def is_length_dependent(self) -> bool:
        """Whether the frequencies depend on how long the sequence is."""
        return self.kind in _LENGTH_DEPENDENT

    def changes_between(self, num_cached: int, num_used: int) -> bool:
        """Whether `num_used` positions have other frequencies than `num_cached`, a smaller number of them.

        If so, all hidden states that a KV cache was made from would differ too, and it must be made anew.
        """
        if self.kind not in _LENGTH_DEPENDENT or num_used <= self._threshold:
            return False
        return self.kind == "dynamic" or num_cached <= self._threshold

    @lru_cache(maxsize=32)  # noqa: B019 - one small module for the life of the model, as in megatron-core
    def _frequencies_on_device(self, seq_len: int, device: torch.device) -> torch.Tensor:
        return self._frequencies(seq_len).to(device)

    def get_emb(self, max_seq_len: int, offset: int = 0) -> torch.Tensor:
        """Angles of the positions, `[max_seq_len, 1, 1, rotary_dim]`."""
        if self.kind in _LENGTH_DEPENDENT:
            self.inv_freq = self._frequencies_on_device(max_seq_len + offset, torch.device(self.inv_freq.device))
        return super().get_emb(max_seq_len, offset)


def apply_rope_parameters(model: "GPTModel | HybridModel") -> None:
    """Gives a model the rotary embedding, or the two, that its config describes. Default rope is left as it is."""
    config = model.config
    assert isinstance(config, DecoderConfig)
    rope_parameters, max_position_embeddings = config.whole_rope_parameters(False), config.seq_length
    window_rope_parameters = None if config.window_rope_parameters is None else config.whole_rope_parameters(True)
    kind = rope_parameters["rope_type"]
    if not hasattr(model, "rotary_pos_emb") or (kind == "default" and window_rope_parameters is None):
        return
    if kind != "default" or window_rope_parameters is not None:
        model.rotary_pos_emb = _rotary_embedding(model, rope_parameters, max_position_embeddings, has_window=False)
    scalings = [attention_scaling(rope_parameters, config.head_dim(False), max_position_embeddings)] * 2
    if window_rope_parameters is not None:
        if {kind, window_rope_parameters.get("rope_type")} & set(_LENGTH_DEPENDENT):
            raise UnsupportedConfigError(
                f"rope_parameters: {' and '.join(_LENGTH_DEPENDENT)} are supported only if they are the same for all "
                "layers, because a KV cache must be made anew when they change"
            )
        window = _rotary_embedding(model, window_rope_parameters, max_position_embeddings, has_window=True)
        both = LayerRotaryEmbedding(model.rotary_pos_emb, window)
        model.rotary_pos_emb = both  # type: ignore[assignment]  # it has the methods that the model calls
        scalings[1] = attention_scaling(window_rope_parameters, config.head_dim(True), max_position_embeddings)
    for attention in _attentions(model.decoder):
        has_window = config.has_window(attention.layer_number)
        setattr(attention, _SCALING, scalings[int(has_window)])
    for attention in _attentions(model.mtp) if model.mtp_process else ():
        setattr(attention, _SCALING, scalings[0])


def _attentions(module: torch.nn.Module) -> list[Attention]:
    return [part for part in module.modules() if isinstance(part, Attention)]


def _rotary_embedding(
    model: "GPTModel | HybridModel", rope_parameters: RopeParameters, max_positions: int, has_window: bool
) -> RotaryEmbedding:
    config = model.config
    assert isinstance(config, DecoderConfig)
    head_dim = config.head_dim(has_window)
    kwargs: dict[str, Any] = {
        "rotary_percent": config.rotary_percent,
        "rotary_interleaved": config.rotary_interleaved,
        "use_cpu_initialization": config.use_cpu_initialization,
        "cp_group": model.pg_collection.cp,
    }
    if rope_parameters.get("rope_type", "default") == "default":
        return RotaryEmbedding(kv_channels=head_dim, rotary_base=rope_parameters["rope_theta"], **kwargs)
    return ScaledRotaryEmbedding(rope_parameters, head_dim, max_positions, **kwargs)
