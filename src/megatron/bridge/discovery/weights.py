"""The weights of a model from headers alone: what each is for, how many parameters it has, and how it is stored."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from megatron.bridge.discovery.model_files import ModelFiles
from megatron.bridge.models.hf_pretrained.quantization.detection import Detection

# What tensors are for, by their HF names: the first pattern that occurs in a name decides.
_CATEGORIES = (
    ("audio", r"(^|\.)(audio_(tower|model|encoder)|speech_encoder|talker|token2wav|code2wav|code_predictor)\."),
    ("projector", r"(^|\.)(multi_modal_projector|mm_projector|mlp1|connector|aligner|embed_vision|embed_audio)\."),
    ("projector", r"\b(vision_tower|vision_model|visual)\.(merger|deepstack_merger_list)\."),
    ("vision", r"(^|\.)(vision_tower|vision_model|vision_encoder|visual|vit|vision)\."),
    ("norms", r"(norm|norm_f|ln_f|ln_1|ln_2|layer_norm[12]?)\.(weight|bias)$"),
    ("router", r"\.(gate|router|shared_expert_gate|router\.\w+|gate\.\w+)\.(weight|bias|scale)$"),
    ("router", r"e_score_correction_bias|expert_bias|moe_statics|\.router\."),
    ("shared experts", r"shared_expert|shared_mlp"),
    ("experts", r"\.experts\.|\.input_linear\.|\.output_linear\."),
    ("linear attention", r"\.(linear_attn|mamba|conv|ssm)\.|\.(A_log|dt_bias|D|(conv1d|in_proj|out_proj)\.\w+)$"),
    ("attention", r"\.(self_attn|self_attention|attention|attn)\.|\.mixer\.[qkvo]_proj\."),
    ("MLP", r"\.(mlp|feed_forward|ffn)\.|\.mixer\.(up|down|fc1_latent|fc2_latent)_proj\."),
    ("norms", r"\.layer_scalar$"),
    ("output layer", r"lm_head|output_layer"),
    ("embedding", r"embed_tokens|embed_in|embeddings|\bwte\b|word_embeddings"),
)
_PATTERNS = tuple((category, re.compile(pattern)) for category, pattern in _CATEGORIES)
# In the order in which a model computes them.
CATEGORIES = (
    "vision", "audio", "projector", "embedding", "attention", "linear attention", "MLP", "router", "experts",
    "shared experts", "norms", "prediction layers", "output layer", "copies", "other",
)  # fmt: skip
OTHER_MODALITIES = ("vision", "audio", "projector")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_PREDICTION = re.compile(r"^(?:model\.)?(?:mtp|mtp_layers|mtp_block|nextn)\.")


@dataclass(frozen=True)
class Weight:
    """A tensor of the model. A quantised one is described as the weight that it stands for.

    Attributes:
        name: the HF name; for experts that are stored alike, that of the first.
        shape: the shape of the weight, however it is stored.
        copies: how many such tensors there are.
        code: the safetensors dtype of the stored numbers.
        stored_bytes: the bytes of one such tensor, with its scales and whatever else belongs to it.
        category: what it is for (`CATEGORIES`).
        layer: the number of the decoder layer that it belongs to, if any.
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
        """The parameters of all copies together."""
        return prod(self.shape) * self.copies

    @property
    def num_bytes(self) -> int:
        """The stored bytes of all copies together."""
        return self.stored_bytes * self.copies


def read_weights(model: ModelFiles, detection: Detection, num_layers: int) -> list[Weight]:
    """The weights that the stored tensors stand for.

    Args:
        detection: which tensors are quantised.
        num_layers: the number of decoder layers; any further ones are prediction layers.
    """
    quantized = {tensor.parts["weight"]: tensor for tensor in detection.tensors.values()}
    parts = {part for tensor in detection.tensors.values() for part in tensor.parts.values()} | detection.dropped.keys()
    weights = []
    for name, stored in model.stored.items():
        shape, nbytes = stored.shape, stored.end - stored.start
        tensor = quantized.get(name)
        if tensor is not None:
            name, shape = tensor.name, tensor.shape
            nbytes = sum(model.stored[part].end - model.stored[part].start for part in tensor.parts.values())
        elif name in parts:
            continue
        kind, layer = category(name), layer_of(name)
        if kind in OTHER_MODALITIES:
            layer = None
        elif _PREDICTION.match(name) or (layer is not None and num_layers and layer >= num_layers):
            kind, layer = "prediction layers", None
        weights.append(Weight(name, shape, model.copies.get(stored.name, 1), stored.code, nbytes, kind, layer))
    return weights


def category(name: str) -> str:
    """What a tensor with this HF name is for."""
    return next((category for category, pattern in _PATTERNS if pattern.search(name)), "other")


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor with this HF name belongs to."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def parameters_by_category(weights: Iterable[Weight]) -> dict[str, int]:
    """The number of parameters of each category, in the order of `CATEGORIES`."""
    counts: dict[str, int] = defaultdict(int)
    for weight in weights:
        counts[weight.category] += weight.num_parameters
    return {name: counts[name] for name in CATEGORIES if counts[name]}


def bytes_by_dtype(weights: Iterable[Weight]) -> dict[str, dict[str, int]]:
    """Stored bytes by category and dtype; a scale counts under its tensor's dtype."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for weight in weights:
        counts[weight.category][weight.code] += weight.num_bytes
    return {name: dict(counts[name]) for name in CATEGORIES if counts[name]}


def num_active(weights: Iterable[Weight], num_experts: int, num_chosen: int) -> int:
    """The parameters that a token uses: all except those of other experts, of prediction layers and of copies.

    The whole embedding is counted, as is usual in published numbers.
    """
    total = 0
    for weight in weights:
        if weight.category in ("prediction layers", "copies"):
            continue
        share = num_chosen / num_experts if weight.category == "experts" and num_experts and num_chosen else 1
        total += round(weight.num_parameters * share)
    return total


@dataclass(frozen=True)
class Layer:
    """One decoder layer, judged by its tensors.

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
        kinds: the config's `layer_types` (or the like), which tell layers with the same tensors apart.
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
