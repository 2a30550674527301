"""Names that several blocks or families use, and mappings of weights that equal HF tensors."""

from collections.abc import Iterable, Mapping

from megatron.bridge.models.conversion.param_mapping import AutoMapping, Dropped, MegatronParamMapping

Mappings = list[MegatronParamMapping | Dropped]

LAYER = "decoder.layers.*"
MLP = f"{LAYER}.mlp"
HF_LAYER = "model.layers.*"


def kinds(bias: bool) -> tuple[str, ...]:
    """The parameters of a layer: its weight and, if it has one, its bias."""
    return ("weight", "bias") if bias else ("weight",)


def parts(megatron: str, hf: str, names: Mapping[str, str] | Iterable[str]) -> Mappings:
    """Weights of one Megatron module that each equal one HF tensor.

    Args:
        megatron, hf: the names of the module.
        names: HF names below it by Megatron names below it, or names that are the same in both.

    Example:
        >>> parts("decoder", "model", {"norm.weight": "final.weight"})
        [AutoMapping('decoder.norm.weight', 'model.final.weight')]
    """
    pairs = names.items() if isinstance(names, Mapping) else ((name, name) for name in names)
    return [AutoMapping(f"{megatron}.{name}", f"{hf}.{hf_name}") for name, hf_name in pairs]


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
