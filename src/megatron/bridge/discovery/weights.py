"""The weights of a model from the headers alone: what each is for, how many numbers it has, and how they are stored."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron.bridge.discovery.model_files import ModelFiles
    from megatron.bridge.models.hf_pretrained.quantization.detection import Detection

# What tensors are for, by their HF names: the first pattern that is found in a name decides.
_CATEGORIES = (
    (
        "audio",
        r"(^|\.)(audio_tower|audio_model|audio_encoder|speech_encoder|talker|token2wav|code2wav|code_predictor)\.",
    ),
    ("projector", r"(^|\.)(multi_modal_projector|mm_projector|mlp1|connector|aligner|embed_vision|embed_audio)\."),
    ("projector", r"\b(vision_tower|vision_model|visual)\.(merger|deepstack_merger_list)\."),
    ("vision", r"(^|\.)(vision_tower|vision_model|vision_encoder|visual|vit|vision)\."),
    ("norms", r"(norm|norm_f|ln_f|ln_1|ln_2|layer_norm[12]?)\.(weight|bias)$"),
    ("router", r"\.(gate|router|shared_expert_gate|router\.\w+|gate\.\w+)\.(weight|bias|scale)$"),
    ("router", r"e_score_correction_bias|expert_bias|moe_statics|\.router\."),
    ("shared experts", r"shared_expert|shared_mlp"),
    ("experts", r"\.experts\.|\.input_linear\.|\.output_linear\."),
    (
        "linear attention",
        r"\.(linear_attn|mamba|conv|ssm)\.|\.(A_log|dt_bias|conv1d\.\w+|in_proj\.\w+|out_proj\.\w+|D)$",
    ),
    ("attention", r"\.(self_attn|self_attention|attention|attn)\.|\.mixer\.[qkvo]_proj\."),
    ("MLP", r"\.(mlp|feed_forward|ffn)\.|\.mixer\.(up|down|fc1_latent|fc2_latent)_proj\."),
    ("norms", r"\.layer_scalar$"),
    ("output layer", r"lm_head|output_layer"),
    ("embedding", r"embed_tokens|embed_in|embeddings|\bwte\b|word_embeddings"),
)
_PATTERNS = tuple((category, re.compile(pattern)) for category, pattern in _CATEGORIES)
# In the order in which a model computes them.
CATEGORIES = (
    *("vision", "audio", "projector", "embedding", "attention", "linear attention", "MLP", "router", "experts"),
    *("shared experts", "norms", "prediction layers", "output layer", "copies", "other"),
)
OTHER_MODALITIES = ("vision", "audio", "projector")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_PREDICTION = re.compile(r"^(?:model\.)?(?:mtp|mtp_layers|mtp_block|nextn)\.")


@dataclass(frozen=True)
class Weight:
    """A tensor of the model, as it is meant.

    Attributes:
        name: HF name; of experts that are stored alike, that of the first.
        shape: of the numbers that are meant, quantised or not.
        copies: how many such tensors there are.
        code: safetensors dtype in which the numbers are stored.
        stored_bytes: of one of them, with scales and whatever else belongs to it.
        category: what it is for (`CATEGORIES`).
        layer: number of its decoder layer, if it belongs to one.
    """

    name: str
    shape: tuple[int, ...]
    copies: int
    code: str
    stored_bytes: int
    category: str
    layer: int | None

    @property
    def num_parameters(self) -> int:
        """Numbers of all copies together."""
        return prod(self.shape) * self.copies

    @property
    def num_bytes(self) -> int:
        """Stored bytes of all copies together."""
        return self.stored_bytes * self.copies


def read_weights(model: ModelFiles, found: Detection, num_layers: int) -> list[Weight]:
    """The tensors that the stored ones stand for.

    Args:
        found: what is quantised among them.
        num_layers: decoder layers; those behind are prediction layers.
    """
    meant = {tensor.parts["weight"]: tensor for tensor in found.tensors.values()}
    hidden = {part for tensor in found.tensors.values() for part in tensor.parts.values()} | found.dropped.keys()
    weights = []
    for name, stored in model.stored.items():
        shape, nbytes = stored.shape, stored.end - stored.start
        tensor = meant.get(name)
        if tensor is not None:
            name, shape = tensor.name, tensor.shape
            nbytes = sum(model.stored[part].end - model.stored[part].start for part in tensor.parts.values())
        elif name in hidden:
            continue
        kind, layer = category(name), layer_of(name)
        if kind in OTHER_MODALITIES:
            layer = None
        elif _PREDICTION.match(name) or (layer is not None and num_layers and layer >= num_layers):
            kind, layer = "prediction layers", None
        weights.append(Weight(name, shape, model.copies.get(stored.name, 1), stored.code, nbytes, kind, layer))
    return weights


def category(name: str) -> str:
    """What a tensor of this HF name is for."""
    return next((category for category, pattern in _PATTERNS if pattern.search(name)), "other")


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor of this HF name belongs to."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def parameters_by_category(weights: Iterable[Weight]) -> dict[str, int]:
    """Numbers of parameters, in the order of `CATEGORIES`."""
    counts: dict[str, int] = defaultdict(int)
    for weight in weights:
        counts[weight.category] += weight.num_parameters
    return {name: counts[name] for name in CATEGORIES if counts[name]}


def bytes_by_dtype(weights: Iterable[Weight]) -> dict[str, dict[str, int]]:
    """Stored bytes by category, then by the dtype that the numbers are stored in; scales count with their tensor."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for weight in weights:
        counts[weight.category][weight.code] += weight.num_bytes
    return {name: dict(counts[name]) for name in CATEGORIES if counts[name]}


def num_active(weights: Iterable[Weight], num_experts: int, num_chosen: int) -> int:
    """Parameters that a token meets: all but the experts that it does not visit, prediction layers and copies.

    The embedding counts in full, as in the numbers that models are published with.
    """
    total = 0
    for weight in weights:
        if weight.category in ("prediction layers", "copies"):
            continue
        part = num_chosen / num_experts if weight.category == "experts" and num_experts and num_chosen else 1
        total += round(weight.num_parameters * part)
    return total


@dataclass(frozen=True)
class Layer:
    """One decoder layer, as its tensors show it.

    Attributes:
        mixer: "attention", "sliding attention", "linear attention", ... or "none".
        feed_forward: "MLP", "experts" or "none".
    """

    index: int
    mixer: str
    feed_forward: str
    num_parameters: int


def layer_map(weights: Iterable[Weight], kinds: list[str] | None) -> list[Layer]:
    """The decoder layers in order.

    Args:
        kinds: the config's `layer_types` (or its like), with which layers of the same tensors are told apart.
    """
    by_layer: dict[int, list[Weight]] = defaultdict(list)
    for weight in weights:
        if weight.layer is not None:
            by_layer[weight.layer].append(weight)
    layers = []
    for index in sorted(by_layer):
        present = {weight.category for weight in by_layer[index]}
        mixers = [name for name in ("attention", "linear attention") if name in present]
        mixer = " and ".join(mixers) or "none"
        if mixers and kinds and index < len(kinds) and kinds[index] not in ("attention", "hybrid", "moe", "mlp"):
            mixer = kinds[index].replace("_", " ")
        feed_forward = next((name for name in ("experts", "MLP") if name in present), "none")
        layers.append(Layer(index, mixer, feed_forward, sum(weight.num_parameters for weight in by_layer[index])))
    return layers
