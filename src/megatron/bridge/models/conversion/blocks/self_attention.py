"""Self-attention, multi-latent attention, and the indexer that chooses its keys."""

from collections.abc import Sequence

from megatron.bridge.models.conversion.blocks.names import LAYER, Mappings, kinds, parts
from megatron.bridge.models.conversion.param_mapping import (
    AutoMapping,
    Dropped,
    FusedQKVMapping,
    GatedQKVMapping,
    LayerQKVMapping,
    QKVMapping,
    ReplicatedMapping,
    TransposedMapping,
)


def attention(
    *,
    hf: str = "model.layers.*.self_attn",
    qkv_bias: bool = False,
    output_bias: bool = False,
    qkv_names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj"),
    fused_qkv: str | None = None,
    fused_order: Sequence[str] = ("q", "k", "v"),
    fused_chunks: int | None = 1,
    output: str = "o_proj",
    transposed: bool = False,
    output_gate: bool = False,
    heads_differ: bool = False,
    qk_norm: bool = False,
    qk_norm_bias: bool = False,
    qk_norm_names: tuple[str, str] = ("q_norm", "k_norm"),
    sinks: str | None = None,
) -> Mappings:
    """Self-attention with q, k, v and output projections.

    Args:
        qkv_bias, output_bias: whether the projections have biases.
        qkv_names: HF names of the projections of q, k and v.
        fused_qkv: HF name of the projection that holds all three, if there is one.
        fused_order, fused_chunks: how it is ordered (see `FusedQKVMapping`).
        output: HF name of the output projection.
        transposed: whether the weights of the fused and the output projection are `[in, out]`.
        output_gate: whether the q tensor has an output gate behind each head's query.
        heads_differ: whether heads differ in layers with a sliding window, or values have another size than keys.
        qk_norm, qk_norm_bias: whether q and k have norms, and whether these have biases.
        qk_norm_names: HF names of the norms.
        sinks: HF name of the learned logit that is added to each head's softmax.

    Example:
        >>> attention(hf="transformer.h.*.attn", fused_qkv="c_attn", output="c_proj", transposed=True)[0]
        FusedQKVMapping('decoder.layers.*.self_attention.linear_qkv.weight', 'transformer.h.*.attn.c_attn.weight')
    """
    megatron = f"{LAYER}.self_attention"
    mappings: Mappings = []
    for kind in kinds(qkv_bias):
        param = f"{megatron}.linear_qkv.{kind}"
        if fused_qkv is not None:
            name = f"{hf}.{fused_qkv}.{kind}"
            mappings.append(
                FusedQKVMapping(param, name, order=fused_order, num_chunks=fused_chunks, transposed=transposed)
            )
        else:
            names = {role: f"{hf}.{name}.{kind}" for role, name in zip("qkv", qkv_names, strict=True)}
            separate = LayerQKVMapping if heads_differ else GatedQKVMapping if output_gate else QKVMapping
            mappings.append(separate(param, **names))
    for kind in kinds(output_bias):
        mapping = TransposedMapping if transposed and kind == "weight" else AutoMapping
        mappings.append(mapping(f"{megatron}.linear_proj.{kind}", f"{hf}.{output}.{kind}"))
    if qk_norm:
        for role, name in zip("qk", qk_norm_names, strict=True):
            for kind in kinds(qk_norm_bias):
                mappings.append(AutoMapping(f"{megatron}.{role}_layernorm.{kind}", f"{hf}.{name}.{kind}"))
    if sinks is not None:
        mappings.append(AutoMapping(f"{megatron}.core_attention.softmax_offset", f"{hf}.{sinks}"))
    # Old versions of transformers saved the rotary frequencies, too.
    mappings.append(Dropped(f"{hf}.rotary_emb.inv_freq", "rotary frequencies are computed from the config"))
    return mappings


def latent_attention(*, hf: str = "model.layers.*.self_attn", q_latent: bool = True) -> Mappings:
    """Multi-latent attention.

    Args:
        q_latent: whether queries have a latent (`q_lora_rank`), or are projected by one matrix.
    """
    megatron = f"{LAYER}.self_attention"
    names = {
        "linear_kv_down_proj.weight": "kv_a_proj_with_mqa.weight",
        "linear_kv_up_proj.layer_norm_weight": "kv_a_layernorm.weight",
        "linear_kv_up_proj.weight": "kv_b_proj.weight",
        "linear_proj.weight": "o_proj.weight",
    }
    if q_latent:
        names |= {
            "linear_q_down_proj.weight": "q_a_proj.weight",
            "linear_q_up_proj.layer_norm_weight": "q_a_layernorm.weight",
            "linear_q_up_proj.weight": "q_b_proj.weight",
        }
    else:
        names["linear_q_proj.weight"] = "q_proj.weight"
    return [
        *parts(megatron, hf, names),
        Dropped(f"{hf}.rotary_emb.inv_freq", "rotary frequencies are computed from the config"),
    ]


def attention_indexer(*, hf: str = "model.layers.*.self_attn.indexer") -> Mappings:
    """The indexer, which chooses the keys of sparse attention (DSA)."""
    megatron = f"{LAYER}.self_attention.core_attention.indexer"
    names = {
        "linear_wq_b.weight": "wq_b.weight",
        "linear_wk.weight": "wk.weight",
        "k_norm.weight": "k_norm.weight",
        "k_norm.bias": "k_norm.bias",
        "linear_weights_proj.weight": "weights_proj.weight",
    }
    return [ReplicatedMapping(f"{megatron}.{name}", f"{hf}.{hf_name}") for name, hf_name in names.items()]
