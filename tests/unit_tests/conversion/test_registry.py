"""Name patterns, precedence and aliases of the mapping registry."""

import pytest

from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.param_mapping import AutoMapping, Dropped, GatedMLPMapping, QKVMapping, Tied
from megatron.bridge.models.placement import canonical_name

REGISTRY = MegatronMappingRegistry(
    QKVMapping("decoder.layers.*.self_attention.linear_qkv.weight", "l.*.q", "l.*.k", "l.*.v"),
    AutoMapping("decoder.layers.*.self_attention.linear_qkv.layer_norm_weight", "l.*.norm"),
    AutoMapping("decoder.layers.0.mlp.linear_fc2.weight", "first.down"),
    AutoMapping("decoder.layers.*.mlp.linear_fc2.weight", "l.*.down"),
    GatedMLPMapping("decoder.layers.*.mlp.experts.linear_fc1.weight*", gate="l.*.e.*.gate", up="l.*.e.*.up"),
    AutoMapping("vision.**", "visual.**"),
    Dropped("l.*.inv_freq", "computed"),
    Tied("head", same_as="embed"),
)


@pytest.mark.parametrize(
    ("megatron", "hf"),
    [
        ("decoder.layers.12.self_attention.linear_qkv.weight", {"q": "l.12.q", "k": "l.12.k", "v": "l.12.v"}),
        ("decoder.layers.0.mlp.linear_fc2.weight", "first.down"),
        ("decoder.layers.10.mlp.linear_fc2.weight", "l.10.down"),
        ("decoder.layers.3.mlp.experts.linear_fc1.weight7", {"gate": "l.3.e.7.gate", "up": "l.3.e.7.up"}),
        ("vision.block.2.proj.weight", "visual.block.2.proj.weight"),
        ("decoder.layers.5.input_layernorm.weight", "l.5.norm"),
        ("decoder.layers.x.mlp.linear_fc2.weight", None),
        ("decoder.layers.1.mlp.linear_fc2.weight.more", None),
    ],
)
def test_megatron_names(megatron: str, hf: object) -> None:
    mapping = REGISTRY.megatron_to_hf_lookup(megatron)
    assert (None if mapping is None else mapping.hf_param) == hf


@pytest.mark.parametrize(
    ("hf", "megatron"),
    [
        ("l.12.k", "decoder.layers.12.self_attention.linear_qkv.weight"),
        ("l.3.e.7.up", "decoder.layers.3.mlp.experts.linear_fc1.weight7"),
        ("visual.patch", "vision.patch"),
        ("l.3.e.7.down", None),
    ],
)
def test_hf_names(hf: str, megatron: str | None) -> None:
    mapping = REGISTRY.hf_to_megatron_lookup(hf)
    assert (None if mapping is None else mapping.megatron_param) == megatron


def test_marks_and_listing() -> None:
    assert REGISTRY.drop_reason("l.4.inv_freq") == "computed"
    assert REGISTRY.drop_reason("l.4.norm") is None
    assert REGISTRY.tied() == {"head": "embed"}
    assert len(REGISTRY) == len(list(REGISTRY)) == len(REGISTRY.get_all_mappings()) == 6
    found = REGISTRY.get_mappings_by_pattern("decoder.layers.*.mlp.**")
    assert [mapping.hf_param for mapping in found[:2]] == ["first.down", "l.*.down"]


def test_an_hf_pattern_needs_captures_for_its_wildcards() -> None:
    with pytest.raises(ValueError, match="more wildcards"):
        AutoMapping("decoder.layers.*.a", "l.*.b.*")


def test_module_types_are_checked() -> None:
    AutoMapping.register_module_type("LinearForLastLayer", "replicated")
    with pytest.raises(ValueError, match="diagonal"):
        AutoMapping.register_module_type("LinearForLastLayer", "diagonal")


@pytest.mark.parametrize(
    ("key", "offset", "name"),
    [
        ("embedding.word_embeddings.weight", (), "embedding.word_embeddings.weight"),
        ("decoder.layers.mlp.linear_fc2.weight", (3,), "decoder.layers.3.mlp.linear_fc2.weight"),
        ("decoder.layers.3.mlp.linear_fc2.weight", (), "decoder.layers.3.mlp.linear_fc2.weight"),
        ("decoder.layers.mlp.experts.experts.linear_fc1.bias", (3, 7), "decoder.layers.3.mlp.experts.linear_fc1.bias7"),
        (
            "decoder.layers.1.mlp.experts.experts.linear_fc1.weight",
            (7,),
            "decoder.layers.1.mlp.experts.linear_fc1.weight7",
        ),
    ],
)
def test_canonical_names(key: str, offset: tuple[int, ...], name: str) -> None:
    assert canonical_name(key, offset) == name
