"""The weights that a config alone promises: the family's rules say which there are, its fields how large they are.

This works for decoders of the usual parts: attention or multi-latent attention, MLPs, mixtures of experts. If a family
has any other weight, nothing is counted rather than too little. The tests compare the result with the checkpoints that
transformers writes.
"""

import re
from collections.abc import Mapping

from megatron.bridge.discovery import facts
from megatron.bridge.discovery.config_levels import LeveledConfig
from megatron.bridge.discovery.families import FamilyMatch
from megatron.bridge.discovery.weights import Weight, category
from megatron.bridge.models.conversion.param_mapping import LayerQKVMapping, MegatronParamMapping

Shape = tuple[int, ...]

_LAYER = "decoder.layers.*."
_PREDICTION = re.compile(r"mtp\.layers\.\d+\.(transformer_layer\.)?")
_DENSE = re.compile(r"mlp\.linear_fc[12]\.(weight|bias)")
_MOE = re.compile(r"mlp\.(router|experts|shared_experts)\.")
_EXPERT = re.compile(r"mlp\.experts\..*")


def expected_weights(config: LeveledConfig, family: FamilyMatch) -> list[Weight]:
    """The weights of a model, as if each Megatron weight were a single tensor; none if some size is not known.

    They have no dtype and no bytes, since nothing is stored. `family.megatron_names` gets their Megatron names.
    """
    num_layers = facts.num_layers(config)
    is_moe = moe_layers(num_layers, family.fields)
    if family.registry is None or not family.is_supported or is_moe is None:
        return []
    shapes = _Shapes(family.fields)
    num_experts = facts.as_size(family.fields.get("num_moe_experts"))
    weights: dict[str, Weight] = {}

    def add(mapping: MegatronParamMapping, layer: int | None, part: str) -> bool:
        shape = shapes.of(part)
        if shape is None or isinstance(mapping, LayerQKVMapping):
            return False
        resolved = mapping if layer is None else mapping.resolve([str(layer), "0"])
        name = next(iter(resolved.hf_names.values()))
        if name not in weights:
            copies = num_experts if _EXPERT.fullmatch(part) else 1
            kind = "prediction layers" if mapping.megatron_param.startswith("mtp.") else category(name)
            weights[name] = Weight(name, shape, copies, "", 0, kind, layer)
            family.megatron_names[name] = resolved.megatron_param
        return True

    for mapping in family.registry:
        pattern = mapping.megatron_param
        if not pattern.startswith(_LAYER):
            if not add(mapping, None, _PREDICTION.sub("", pattern)):
                return []
            continue
        part = pattern.removeprefix(_LAYER)
        for layer in range(num_layers):
            if (_DENSE.fullmatch(part) and is_moe[layer]) or (_MOE.match(part) and not is_moe[layer]):
                continue
            if not add(mapping, layer, part):
                return []
    return list(weights.values())


def moe_layers(num_layers: int, fields: Mapping[str, object]) -> list[bool] | None:
    """Whether each layer has experts; `None` if there are layers of other kinds, or if the fields do not fit.

    Args:
        fields: the provider's.
    """
    if not fields.get("num_moe_experts"):
        return [False] * num_layers
    freq = fields.get("moe_layer_freq", 1)
    if "hybrid_layer_pattern" in fields or not (freq == 1 or (isinstance(freq, list) and len(freq) == num_layers)):
        return None
    return [bool(moe) for moe in freq] if isinstance(freq, list) else [True] * num_layers


class _Shapes:
    """The shapes of Megatron weights, by their names within a layer."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        def size(name: str) -> int:
            return facts.as_size(fields.get(name))

        hidden, vocabulary, width = size("hidden_size"), size("vocab_size"), size("ffn_hidden_size")
        heads = size("num_attention_heads")
        groups = size("num_query_groups") or heads
        dim, value_dim = size("kv_channels") or hidden // (heads or 1), size("v_head_dim")
        q_rank, kv_rank = size("q_lora_rank"), size("kv_lora_rank")
        nope, rope = size("qk_head_dim"), size("qk_pos_emb_head_dim")
        experts, expert_width = size("num_moe_experts"), size("moe_ffn_hidden_size")
        shared = size("moe_shared_expert_intermediate_size")
        parts = 2 if fields.get("gated_linear_unit") else 1
        by_head = fields.get("qk_layernorm_scope") not in ("projection", "separate_heads")
        attended = heads * (value_dim if kv_rank else dim)
        self._shapes: dict[str, Shape] = {
            "embedding.word_embeddings.weight": (vocabulary, hidden),
            "output_layer.weight": (vocabulary, hidden),
            "output_layer.bias": (vocabulary,),
            "self_attention.linear_qkv.weight": ((heads + 2 * groups) * dim, hidden),
            "self_attention.linear_qkv.bias": ((heads + 2 * groups) * dim,),
            "self_attention.linear_proj.weight": (hidden, attended),
            "self_attention.linear_proj.bias": (hidden,),
            "self_attention.q_layernorm.weight": (dim if by_head else heads * dim,),
            "self_attention.k_layernorm.weight": (dim if by_head else groups * dim,),
            "self_attention.core_attention.softmax_offset": (heads,),
            "self_attention.linear_q_proj.weight": (heads * (nope + rope), hidden),
            "self_attention.linear_q_down_proj.weight": (q_rank, hidden),
            "self_attention.linear_q_up_proj.weight": (heads * (nope + rope), q_rank),
            "self_attention.linear_q_up_proj.layer_norm_weight": (q_rank,),
            "self_attention.linear_kv_down_proj.weight": (kv_rank + rope, hidden),
            "self_attention.linear_kv_up_proj.weight": (heads * (nope + value_dim), kv_rank),
            "self_attention.linear_kv_up_proj.layer_norm_weight": (kv_rank,),
            **_two_layers("mlp.", hidden, width, parts),
            **_two_layers("mlp.shared_experts.", hidden, shared, parts),
            **_two_layers("mlp.experts.", hidden, expert_width, parts, "*"),
            "mlp.shared_experts.gate_weight": (1, hidden),
            "mlp.router.weight": (experts, hidden),
            "mlp.router.bias": (experts,),
            "mlp.router.expert_bias": (experts,),
            "eh_proj.weight": (hidden, 2 * hidden),
            **dict.fromkeys(_norms("weight"), (hidden,)),
            **dict.fromkeys(_norms("bias"), (hidden,)),
        }

    def of(self, part: str) -> Shape | None:
        """The shape of a weight; `None` if it is of another kind, or if the config does not state its size."""
        shape = self._shapes.get(part)
        return shape if shape is not None and all(shape) else None


def _two_layers(prefix: str, hidden: int, width: int, parts: int, end: str = "") -> dict[str, Shape]:
    return {
        f"{prefix}linear_fc1.weight{end}": (parts * width, hidden),
        f"{prefix}linear_fc1.bias{end}": (parts * width,),
        f"{prefix}linear_fc2.weight{end}": (hidden, width),
        f"{prefix}linear_fc2.bias{end}": (hidden,),
    }


def _norms(kind: str) -> list[str]:
    names = (
        "decoder.final_layernorm.", "self_attention.linear_qkv.layer_norm_", "mlp.linear_fc1.layer_norm_",
        "pre_mlp_layernorm.", "input_layernorm.", "enorm.", "hnorm.", "final_layernorm.",
        "self_attention.linear_proj.post_layernorm.", "mlp.linear_fc2.post_layernorm.",
    )  # fmt: skip
    return [f"{name}{kind}" for name in names]
