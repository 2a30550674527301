"""Fused projections of q, k and v in the forms in which transformers' models store them.

The oracle is transformers' own attention: what it hands to its kernel as q, k and v must be what Megatron's fused
weight gives.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import AttentionInterface, PretrainedConfig

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import blocks
from megatron.bridge.models.conversion import layout as layouts
from megatron.bridge.models.conversion.param_mapping import (
    Dropped,
    FusedGatedMLPMapping,
    FusedQKVMapping,
    Tied,
    TransposedMapping,
)

HEADS, HEAD_DIM = 4, 6
HIDDEN = HEADS * HEAD_DIM
# Model class, its config, the module and its projection, and how the projection is stored.
STORED: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "blocks, [in, out]": (
        "GPT2Model",
        {"n_embd": HIDDEN, "n_head": HEADS, "n_layer": 1, "vocab_size": 11},
        "h.0.attn.c_attn",
        {"transposed": True},
    ),
    "by head": (
        "GPTNeoXModel",
        {
            "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": 1, "intermediate_size": 8,
            "vocab_size": 11,
        },
        "layers.0.attention.query_key_value",
        {"num_chunks": None},
    ),
    "four chunks of q, v, k": (
        "CodeGenModel",
        {"n_embd": HIDDEN, "n_head": HEADS, "n_layer": 1, "rotary_dim": 2, "vocab_size": 11},
        "h.0.attn.qkv_proj",
        {"num_chunks": 4, "order": ("q", "v", "k")},
    ),
}  # fmt: skip


def given_to_the_kernel(model: torch.nn.Module, hidden: torch.Tensor) -> list[torch.Tensor]:
    """q, k and v `[A, D]` of one token at position 0, where rotary embeddings turn nothing."""
    seen: list[torch.Tensor] = []

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        seen.extend(part[0, :, 0].detach() for part in (query, key, value))

    def kernel(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
        attend(query, key, value)
        return value.transpose(1, 2), None

    def own_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
        attend(query, key, value)
        return value, None

    AttentionInterface.register("seen", kernel)
    for module in model.modules():
        if hasattr(module, "_attn"):  # CodeGen calls a method of its own
            module._attn = own_kernel
    with torch.no_grad():
        model(inputs_embeds=hidden, use_cache=False)
    return seen


@pytest.mark.parametrize(("name", "fields", "projection", "stored"), STORED.values(), ids=STORED)
def test_fused_qkv(name: str, fields: dict[str, Any], projection: str, stored: dict[str, Any]) -> None:
    model_class: Any = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**fields)).eval()
    if name != "CodeGenModel":
        model.config._attn_implementation = "seen"
    projected: list[torch.Tensor] = []
    module = model.get_submodule(projection)
    module.register_forward_pre_hook(lambda _, inputs: projected.append(inputs[0].detach()))
    queries, keys, values = given_to_the_kernel(model, torch.randn(1, 1, HIDDEN))
    weights = {kind: tensor.detach() for kind, tensor in module.named_parameters()}
    config = SimpleNamespace(
        num_query_groups=HEADS, num_hf_query_groups=HEADS, num_attention_heads=HEADS, kv_channels=HEAD_DIM
    )
    fused = {}
    for kind, tensor in weights.items():
        shape = (3 * HIDDEN, HIDDEN) if kind == "weight" else (3 * HIDDEN,)
        mapping = FusedQKVMapping(
            f"decoder.layers.0.self_attention.linear_qkv.{kind}", f"{projection}.{kind}", **stored
        )
        layout = mapping.layout(shape, config)
        fused[kind] = layouts.fuse(layout, {"weight": tensor})
        assert torch.equal(layouts.split(layout, fused[kind])["weight"], tensor)
    # Megatron's rows: for each query group its queries, its key and its value.
    output = torch.nn.functional.linear(projected[0][0, 0], fused["weight"], fused.get("bias"))
    query, key, value = output.view(HEADS, 3, HEAD_DIM).unbind(1)
    for ours, theirs in ((query, queries), (key, keys), (value, values)):
        torch.testing.assert_close(ours, theirs)


def test_chunks_share_out_the_groups() -> None:
    mapping = FusedQKVMapping("a.linear_qkv.weight", "b.weight", num_chunks=4)
    config = SimpleNamespace(num_query_groups=6, num_hf_query_groups=6, num_attention_heads=6, kv_channels=2)
    with pytest.raises(UnsupportedConfigError, match=r"6 query groups cannot be shared out over 4 chunks of b\.weight"):
        mapping.layout((36, 5), config)


@pytest.mark.parametrize("transposed", [False, True])
def test_up_in_front_of_gate(transposed: bool) -> None:
    gate, up = torch.randn(4, 3), torch.randn(4, 3)
    stored = torch.cat([up, gate])
    mapping = FusedGatedMLPMapping("a.linear_fc1.weight", "b.weight", order=("up", "gate"), transposed=transposed)
    layout = mapping.layout((8, 3), SimpleNamespace())
    weight = layouts.fuse(layout, {"weight": stored.T.contiguous() if transposed else stored})
    assert torch.equal(weight, torch.cat([gate, up]))


def test_a_transposed_weight_with_added_columns() -> None:
    """GPT-2's output projection, where query groups were added for tensor parallelism."""
    config = SimpleNamespace(unpadded_query_groups=3, num_query_groups=4)
    mapping = TransposedMapping("decoder.layers.0.self_attention.linear_proj.weight", "h.0.attn.c_proj.weight")
    stored = torch.randn(6, 5)
    weight = layouts.fuse(mapping.layout((5, 8), config), {"weight": stored})
    assert torch.equal(weight, torch.cat([stored.T, torch.zeros(5, 2)], dim=1))


def test_blocks_of_gpt2_have_the_shapes_of_its_checkpoint() -> None:
    config: PretrainedConfig = transformers.GPT2Config(n_embd=HIDDEN, n_head=HEADS, n_layer=1, vocab_size=11)
    state = transformers.GPT2LMHeadModel(config).state_dict()
    hf = "transformer.h.*"
    provider = SimpleNamespace(
        num_query_groups=HEADS, num_hf_query_groups=HEADS, num_attention_heads=HEADS, kv_channels=HEAD_DIM,
        unpadded_query_groups=None,
    )  # fmt: skip
    mappings = [
        *blocks.attention(
            hf=f"{hf}.attn", qkv_bias=True, output_bias=True, fused_qkv="c_attn", output="c_proj", transposed=True
        ),
        *blocks.mlp(hf=f"{hf}.mlp", up="c_fc", down="c_proj", bias=True, transposed=True),
    ]
    shapes = {"linear_qkv": (3 * HIDDEN, HIDDEN), "linear_proj": (HIDDEN, HIDDEN)}
    shapes |= {"linear_fc1": (4 * HIDDEN, HIDDEN), "linear_fc2": (HIDDEN, 4 * HIDDEN)}
    found = {}
    for mapping in mappings:
        if not isinstance(mapping, Dropped):
            module, kind = mapping.megatron_param.rsplit(".", 2)[1:]
            layout = mapping.resolve("0").layout(shapes[module][: 2 if kind == "weight" else 1], provider)
            found |= {name: layout.hf_shapes[role] for role, name in mapping.resolve("0").hf_names.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items() if ".attn." in name or ".mlp." in name}
    assert found == wanted


def test_names_of_separate_projections() -> None:
    [mapping, *_] = blocks.attention(hf="h.*", qkv_names=("query", "key", "value"))
    assert mapping.hf_names == {"q": "h.*.query.weight", "k": "h.*.key.weight", "v": "h.*.value.weight"}  # type: ignore[union-attr]


def test_below() -> None:
    """A language model inside of another model: every block under its new names, dropped and tied tensors too."""
    hf = ("model.", "model.language_model.")
    plain = [*blocks.embeddings(tied=True), *blocks.attention(qk_norm=True), *blocks.moe()]
    moved = blocks.below(plain, megatron="language_model.", hf=hf)
    assert len(moved) == len(plain)
    for before, after in zip(plain, moved, strict=True):
        assert type(before) is type(after)
        if isinstance(before, Dropped):
            assert after.hf_param == before.hf_param.replace(*hf, 1)
        else:
            assert after.megatron_param == f"language_model.{before.megatron_param}"  # type: ignore[union-attr]
            assert list(after.hf_names.values()) == [name.replace(*hf, 1) for name in before.hf_names.values()]  # type: ignore[union-attr]
    [tied] = [mapping for mapping in moved if isinstance(mapping, Tied)]
    assert (tied.hf_param, tied.same_as) == ("lm_head.weight", "model.language_model.embed_tokens.weight")
