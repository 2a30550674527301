"""Names that blocks have in common, and mappings of weights that are HF tensors as they are."""

from collections.abc import Iterable, Mapping

from megatron.bridge.models.conversion.param_mapping import AutoMapping, Dropped, MegatronParamMapping

Mappings = list[MegatronParamMapping | Dropped]

LAYER = "decoder.layers.*"
MLP = f"{LAYER}.mlp"
HF_LAYER = "model.layers.*"

# HF names of the norms of q and k in some families.
LONG_QK_NORM_NAMES = ("query_layernorm", "key_layernorm")
QK_LAYERNORM_NAMES = ("q_layernorm", "k_layernorm")
# HF names that several families have in common, to be passed to blocks.
DEEPSEEK_ROUTER_BIAS = "gate.e_score_correction_bias"
BLOCK_SPARSE_MOE = "model.layers.*.block_sparse_moe"
BACKBONE_NORM = "backbone.layers.*.norm.weight"
BACKBONE_MIXER = "backbone.layers.*.mixer"
FEED_FORWARD = "model.layers.*.feed_forward"
NUMBERED_EXPERT = ("w1", "w3", "w2")


def kinds(bias: bool) -> tuple[str, ...]:
    """What a layer has: a weight, and perhaps a bias."""
    return ("weight", "bias") if bias else ("weight",)


def parts(megatron: str, hf: str, names: Mapping[str, str] | Iterable[str]) -> Mappings:
    """Weights below a module of Megatron's that are HF tensors as they are.

    Args:
        megatron, hf: what the names begin with.
        names: how they go on in HF, by how they go on in Megatron; or how they go on in both.
    """
    pairs = names.items() if isinstance(names, Mapping) else ((name, name) for name in names)
    return [AutoMapping(f"{megatron}.{ours}", f"{hf}.{theirs}") for ours, theirs in pairs]


def below(mappings: Mappings, *, megatron: str = "", hf: tuple[str, str] = ("", "")) -> Mappings:
    """Mappings of a model that is a part of another, as the language model of a VLM is.

    Args:
        megatron: what its Megatron names begin with there.
        hf: what its HF names begin with on their own, and there.

    Example:
        >>> norm = AutoMapping("decoder.final_layernorm.weight", "model.norm.weight")
        >>> below([norm], megatron="language_model.", hf=("model.", "model.language_model."))
        [AutoMapping('language_model.decoder.final_layernorm.weight', 'model.language_model.norm.weight')]
    """
    return [mapping.below(megatron=megatron, hf=hf) for mapping in mappings]
