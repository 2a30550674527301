"""Pairs of a Megatron name and an HF name are typed once: usual ones in blocks, a family's own in that family.

HF names alone, which a family gives to blocks, may be typed wherever they are needed.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from megatron.bridge.models.conversion import blocks
from megatron.bridge.models.conversion.param_mapping import MegatronParamMapping
from tools.check_project import SOURCE, is_family

_NAME = re.compile(r"[\w*]+(\.[\w*]+)+")


def _text(node: ast.expr) -> str | None:
    """A string literal, with the shared layer name put in and `*` for whatever else is formatted into it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = []
        for value in node.values:
            if isinstance(value, ast.FormattedValue):
                parts.append(blocks.LAYER if ast.unparse(value.value) == "blocks.LAYER" else "*")
            else:
                parts.append(_text(value) or "")
        return "".join(parts)
    return None


def _literals(node: ast.AST) -> list[str]:
    inner = {id(part) for found in ast.walk(node) if isinstance(found, ast.JoinedStr) for part in found.values}
    texts = [_text(found) for found in ast.walk(node) if isinstance(found, ast.expr) and id(found) not in inner]
    return [text for text in texts if text is not None]


def typed_pairs(tree: ast.Module) -> set[tuple[str, str]]:
    """Pairs of a Megatron name and an HF name that a file types in a mapping of its own."""
    pairs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Mapping"):
            literals = _literals(ast.Tuple(node.args + [keyword.value for keyword in node.keywords]))
            pairs |= {(literals[0], name) for name in literals[1:]}
    return pairs


def families() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((SOURCE / "models").glob("*/*.py")):
        if is_family(path):
            yield path, ast.parse(path.read_text())


def _block_pairs() -> set[tuple[str, str]]:
    everything = [
        *blocks.embeddings(tied=False, norm_bias=True, lm_head_bias=True),
        *blocks.pre_norms(bias=True),
        *blocks.post_norms(),
        *blocks.attention(qkv_bias=True, output_bias=True, qk_norm=True, sinks="sinks"),
        *blocks.latent_attention(),
        *blocks.latent_attention(q_latent=False),
        *blocks.gated_mlp(bias=True),
        *blocks.mlp(bias=True),
        *blocks.moe(router_bias="gate.e_score_correction_bias", shared="shared_experts"),
        *blocks.fused_moe(bias=True),
    ]
    mappings = [mapping for mapping in everything if isinstance(mapping, MegatronParamMapping)]
    return {(mapping.megatron_param, name) for mapping in mappings for name in mapping.hf_names.values()}


def test_no_family_types_what_a_block_has() -> None:
    typed = {pair: path.name for path, tree in families() for pair in typed_pairs(tree)}
    assert {pair: typed[pair] for pair in typed.keys() & _block_pairs()} == {}


def test_pairs_are_typed_in_one_family() -> None:
    places = defaultdict(set)
    for path, tree in families():
        for pair in typed_pairs(tree):
            places[pair].add(path.name)
    assert {pair: sorted(files) for pair, files in places.items() if len(files) > 1} == {}


def test_the_check_reads_what_families_write() -> None:
    tree = ast.parse(
        'AutoMapping(f"{blocks.LAYER}.mlp.linear_fc2.weight", "model.layers.*.mlp.down_proj.weight")\n'
        'QKVMapping("a.b", q=f"l.{role}_proj", k="l.k", v="l.v")\n'
        'blocks.moe(hf="model.layers.*.block", names=("w1", "w3", "w2"))\n'
    )
    assert typed_pairs(tree) == {
        ("decoder.layers.*.mlp.linear_fc2.weight", "model.layers.*.mlp.down_proj.weight"),
        ("a.b", "l.*_proj"), ("a.b", "l.k"), ("a.b", "l.v"),
    }  # fmt: skip
    assert typed_pairs(tree) & _block_pairs() == {
        ("decoder.layers.*.mlp.linear_fc2.weight", "model.layers.*.mlp.down_proj.weight")
    }
