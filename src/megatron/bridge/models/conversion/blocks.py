"""Shared blocks: the mappings of a usual layer's parts. The only place where their weight names are typed.

A block is a function of a few choices (read from the HF config by the family) that returns mappings. `hf` is the
HF name of the module, with `*` for the layer number; Megatron names are those of the Transformer Engine spec.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from megatron.bridge.models.conversion.param_mapping import (
    AutoMapping,
    Dropped,
    FusedExpertMapping,
    FusedGatedExpertMapping,
    FusedQKVMapping,
    GatedMLPMapping,
    GatedQKVMapping,
    LayerQKVMapping,
    MegatronParamMapping,
    QKVMapping,
    ReplicatedMapping,
    RMSNorm2ZeroCenteredRMSNormMapping,
    SectionMapping,
    SwappedColumnsMapping,
    Tied,
)

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


def _kinds(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


def parts(megatron: str, hf: str, names: Mapping[str, str] | Iterable[str]) -> Mappings:
    """Weights below a module of Megatron's that are HF tensors as they are.

    Args:
        megatron, hf: what the names begin with.
        names: how they go on in HF, by how they go on in Megatron; or how they go on in both.
    """
    pairs = names.items() if isinstance(names, Mapping) else ((name, name) for name in names)
    return [AutoMapping(f"{megatron}.{ours}", f"{hf}.{theirs}") for ours, theirs in pairs]


def embeddings(
    *,
    tied: bool,
    hf: str = "model",
    lm_head: str = "lm_head",
    embedding: str = "embed_tokens",
    norm: str = "norm",
    norm_bias: bool = False,
    lm_head_bias: bool = False,
    megatron_norm: str = "final_layernorm",
) -> Mappings:
    """Word embedding, final norm and output layer; with tied weights the output layer has none of its own.

    Args:
        embedding, norm: HF names of the word embedding and the final norm, below `hf`.
        norm_bias, lm_head_bias: whether these layers have biases.
        megatron_norm: Megatron's name of the final norm; "final_norm" in a HybridModel.
    """
    mappings: Mappings = [AutoMapping("embedding.word_embeddings.weight", f"{hf}.{embedding}.weight")]
    for kind in _kinds(norm_bias):
        mappings.append(AutoMapping(f"decoder.{megatron_norm}.{kind}", f"{hf}.{norm}.{kind}"))
    if lm_head_bias:
        mappings.append(AutoMapping("output_layer.bias", f"{lm_head}.bias"))
    if tied:
        mappings.append(Tied(f"{lm_head}.weight", same_as=f"{hf}.{embedding}.weight"))
    else:
        mappings.append(AutoMapping("output_layer.weight", f"{lm_head}.weight"))
    return mappings


def backbone_embeddings(*, tied: bool) -> Mappings:
    """`embeddings` of a HybridModel, as models name them whose every layer is one mixer (Mamba-2, Nemotron-H)."""
    return embeddings(tied=tied, hf="backbone", embedding="embeddings", norm="norm_f", megatron_norm="final_norm")


def pre_norms(
    *,
    hf: str = "model.layers.*",
    attention: str | None = "input_layernorm",
    mlp: str | None = "post_attention_layernorm",
    bias: bool = False,
) -> Mappings:
    """The norms in front of attention and MLP; `None` for one that the layer does not have."""
    norms = (("self_attention.linear_qkv", attention), ("mlp.linear_fc1", mlp))
    return [
        AutoMapping(f"{LAYER}.{megatron}.layer_norm_{kind}", f"{hf}.{name}.{kind}")
        for megatron, name in norms
        if name is not None
        for kind in _kinds(bias)
    ]


def post_norms(
    *,
    hf: str = "model.layers.*",
    attention: str = "post_attention_layernorm",
    mlp: str = "post_feedforward_layernorm",
) -> Mappings:
    """The norms behind attention and MLP, in front of the residual addition."""
    return [
        AutoMapping(f"{LAYER}.self_attention.linear_proj.post_layernorm.weight", f"{hf}.{attention}.weight"),
        AutoMapping(f"{LAYER}.mlp.linear_fc2.post_layernorm.weight", f"{hf}.{mlp}.weight"),
    ]


def attention(
    *,
    hf: str = "model.layers.*.self_attn",
    qkv_bias: bool = False,
    output_bias: bool = False,
    qk_norm: bool = False,
    sinks: str | None = None,
    qk_norm_bias: bool = False,
    qk_norm_names: tuple[str, str] = ("q_norm", "k_norm"),
    fused_qkv: str | None = None,
    output: str = "o_proj",
    output_gate: bool = False,
    heads_differ: bool = False,
) -> Mappings:
    """Self-attention with q, k, v and output projections.

    Args:
        qkv_bias, output_bias: whether the projections have biases.
        qk_norm: whether q and k have norms.
        qk_norm_bias: whether these have biases.
        qk_norm_names: their HF names.
        fused_qkv: HF name of one projection that holds all of q, then k, then v; default: three projections.
        output: HF name of the output projection.
        output_gate: whether the q tensor has a gate of the output behind each head's query.
        heads_differ: whether layers with a sliding window have heads of their own, or values have.
        sinks: HF name of the learned logit that each head's softmax has in addition.
    """
    megatron = f"{LAYER}.self_attention"
    mappings: Mappings = []
    for kind in _kinds(qkv_bias):
        if fused_qkv is not None:
            mappings.append(FusedQKVMapping(f"{megatron}.linear_qkv.{kind}", f"{hf}.{fused_qkv}.{kind}"))
        else:
            names = {role: f"{hf}.{role}_proj.{kind}" for role in ("q", "k", "v")}
            fused = LayerQKVMapping if heads_differ else GatedQKVMapping if output_gate else QKVMapping
            mappings.append(fused(f"{megatron}.linear_qkv.{kind}", **names))
    for kind in _kinds(output_bias):
        mappings.append(AutoMapping(f"{megatron}.linear_proj.{kind}", f"{hf}.{output}.{kind}"))
    if qk_norm:
        for role, name in zip(("q", "k"), qk_norm_names, strict=True):
            for kind in _kinds(qk_norm_bias):
                mappings.append(AutoMapping(f"{megatron}.{role}_layernorm.{kind}", f"{hf}.{name}.{kind}"))
    if sinks is not None:
        mappings.append(AutoMapping(f"{megatron}.core_attention.softmax_offset", f"{hf}.{sinks}"))
    # Checkpoints made by old versions of transformers carry the rotary frequencies.
    mappings.append(Dropped(f"{hf}.rotary_emb.inv_freq", "rotary frequencies are computed from the config"))
    return mappings


def latent_attention(*, hf: str = "model.layers.*.self_attn", q_latent: bool = True) -> Mappings:
    """Multi-latent attention.

    Args:
        q_latent: whether queries are projected down and up again (`q_lora_rank`), or by one matrix.
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
    mappings: Mappings = [AutoMapping(f"{megatron}.{ours}", f"{hf}.{theirs}") for ours, theirs in names.items()]
    return [*mappings, Dropped(f"{hf}.rotary_emb.inv_freq", "rotary frequencies are computed from the config")]


def gated_delta_net(config: Any, *, hf: str = "model.layers.*.linear_attn", fused_by_head: bool) -> Mappings:
    """A gated delta net and the norm in front of it.

    Args:
        config: the HF config, for the sizes of heads.
        fused_by_head: whether the HF projections are two (q, k, v, z and b, a), each with the rows of one key head
            after those of another, or four (q, k, v together, z, b and a).
    """
    megatron = f"{LAYER}.self_attention"
    num_heads, per_head = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
    keys, values = config.linear_key_head_dim, per_head * config.linear_value_head_dim
    mappings: Mappings = [
        AutoMapping(f"{megatron}.in_proj.layer_norm_weight", f"{hf.rpartition('.')[0]}.input_layernorm.weight"),
        AutoMapping(f"{megatron}.A_log", f"{hf}.A_log"),
        AutoMapping(f"{megatron}.dt_bias", f"{hf}.dt_bias"),
        RMSNorm2ZeroCenteredRMSNormMapping(
            f"{megatron}.out_norm.weight", f"{hf}.norm.weight", if_field="linear_out_norm_zero_centered"
        ),
        AutoMapping(f"{megatron}.out_proj.weight", f"{hf}.out_proj.weight"),
    ]

    def sections(weight: str, theirs: str, names: tuple[str, ...], sizes: tuple[int, ...], num_groups: int) -> None:
        for index, name in enumerate(names):
            ours = f"{megatron}.{weight}.{name}"
            mappings.append(SectionMapping(ours, f"{hf}.{theirs}.weight", sizes, index, num_groups))

    qkv = (num_heads * keys, num_heads * keys, num_heads * values)
    sections("conv1d.weight", "conv1d", ("query", "key", "value"), qkv, 1)
    if fused_by_head:
        parts = ("query", "key", "value", "z")
        sections("in_proj.weight", "in_proj_qkvz", parts, (keys, keys, values, values), num_heads)
        sections("in_proj.weight", "in_proj_ba", ("beta", "alpha"), (per_head, per_head), num_heads)
    else:
        sections("in_proj.weight", "in_proj_qkv", ("query", "key", "value"), qkv, 1)
        for name, theirs in (("z", "in_proj_z"), ("beta", "in_proj_b"), ("alpha", "in_proj_a")):
            mappings.append(AutoMapping(f"{megatron}.in_proj.weight.{name}", f"{hf}.{theirs}.weight"))
    return mappings


def short_convolution(
    hidden_size: int, *, hf: str = "model.layers.*.conv", norm: str = "model.layers.*.operator_norm", bias: bool = False
) -> Mappings:
    """A gated short convolution and the norm in front of it.

    Args:
        norm: HF name of the norm.
        bias: whether the convolution and the projections around it have biases.
    """
    megatron = f"{LAYER}.self_attention"
    mappings: Mappings = [AutoMapping(f"{megatron}.in_proj.layer_norm_weight", f"{norm}.weight")]
    for kind in _kinds(bias):
        for index, part in enumerate(("B", "C", "x")):
            ours = f"{megatron}.in_proj.{kind}.{part}"
            mappings.append(SectionMapping(ours, f"{hf}.in_proj.{kind}", (hidden_size,) * 3, index))
        for ours, theirs in (("conv1d", "conv"), ("out_proj", "out_proj")):
            mappings.append(AutoMapping(f"{megatron}.{ours}.{kind}", f"{hf}.{theirs}.{kind}"))
    return mappings


def attention_indexer(*, hf: str = "model.layers.*.self_attn.indexer") -> Mappings:
    """What chooses the keys of sparse attention (DSA)."""
    megatron = f"{LAYER}.self_attention.core_attention.indexer"
    names = {
        "linear_wq_b.weight": "wq_b.weight",
        "linear_wk.weight": "wk.weight",
        "k_norm.weight": "k_norm.weight",
        "k_norm.bias": "k_norm.bias",
        "linear_weights_proj.weight": "weights_proj.weight",
    }
    return [ReplicatedMapping(f"{megatron}.{ours}", f"{hf}.{theirs}") for ours, theirs in names.items()]


def moe(
    *,
    hf: str = "model.layers.*.mlp",
    router: str = "gate",
    router_bias: str | None = None,
    experts: str = "experts",
    names: tuple[str | None, str, str] = ("gate_proj", "up_proj", "down_proj"),
    shared: str | None = None,
    shared_gate: str | None = None,
) -> Mappings:
    """Mixture of experts, each expert's tensors stored on their own.

    Args:
        router: HF name of the router, below `hf`.
        router_bias: HF name of the bias that is added to scores for the choice of experts.
        experts: HF name of the list of experts.
        names: HF names of an expert's gate, up and down projections; no gate for experts of two layers.
        shared: HF name of the shared expert, if there is one.
        shared_gate: HF name of the projection that gates the shared expert.
    """
    megatron = MLP
    mappings: Mappings = [
        AutoMapping(f"{megatron}.router.weight", f"{hf}.{router}.weight"),
        *_two_layers(f"{megatron}.experts", f"{hf}.{experts}.*", names, expert="*"),
    ]
    if router_bias is not None:
        mappings.append(AutoMapping(f"{megatron}.router.expert_bias", f"{hf}.{router_bias}"))
    if shared is not None:
        mappings += _shared_expert(f"{hf}.{shared}", names)
    if shared_gate is not None:
        mappings.append(AutoMapping(f"{megatron}.shared_experts.gate_weight", f"{hf}.{shared_gate}.weight"))
    return mappings


def _shared_expert(hf: str, names: tuple[str | None, str, str] = ("gate_proj", "up_proj", "down_proj")) -> Mappings:
    return _two_layers(f"{LAYER}.mlp.shared_experts", hf, names)


def _two_layers(megatron: str, hf: str, names: tuple[str | None, str, str], expert: str = "") -> Mappings:
    """The weights of an expert's MLP."""
    gate, up, down = names
    fc1, hf_up = f"{megatron}.linear_fc1.weight{expert}", f"{hf}.{up}.weight"
    return [
        AutoMapping(fc1, hf_up) if gate is None else GatedMLPMapping(fc1, gate=f"{hf}.{gate}.weight", up=hf_up),
        AutoMapping(f"{megatron}.linear_fc2.weight{expert}", f"{hf}.{down}.weight"),
    ]


def mamba(
    *,
    hf: str,
    num_heads: int,
    head_dim: int,
    num_groups: int,
    state_size: int,
    megatron: str = "mixer",
    norm: bool = True,
) -> Mappings:
    """A Mamba-2 mixer, its norm in front not included.

    Args:
        megatron: Megatron's name of it.
        norm: whether it has a gated norm.
        num_heads, head_dim, num_groups, state_size: of the whole mixer; its projection and its convolution hold several
            tensors, one after the other, which megatron-core keeps apart in checkpoints.
    """
    megatron = f"{LAYER}.{megatron}"
    inner, states = num_heads * head_dim, num_groups * state_size
    convolved = {"x": inner, "B": states, "C": states}
    sections = {
        "in_proj.weight": {"z": inner, **convolved, "dt": num_heads},
        "conv1d.weight": convolved,
        "conv1d.bias": convolved,
    }
    mappings: Mappings = [
        SectionMapping(f"{megatron}.{name}.{part}", f"{hf}.{name}", tuple(sizes.values()), index)
        for name, sizes in sections.items()
        for index, part in enumerate(sizes)
    ]
    whole = ("A_log", "D", "dt_bias", "out_proj.weight", *(("norm.weight",) if norm else ()))
    return [*mappings, *(AutoMapping(f"{megatron}.{name}", f"{hf}.{name}") for name in whole)]


def fused_moe(
    *,
    hf: str = "model.layers.*.mlp",
    router: str = "router",
    gate_up: str = "experts.gate_up_proj",
    down: str = "experts.down_proj",
    bias: bool = False,
    transposed: bool = False,
    interleaved: bool = False,
    shared: str | None = None,
) -> Mappings:
    """Mixture of gated experts, the tensors of all experts of a layer stored as one.

    Args:
        router: HF name of the router, below `hf`.
        gate_up, down: HF names of the experts' projections.
        bias: whether router and experts have biases, stored under the names of the weights with `_bias`.
        transposed: whether an expert's weight is `[in, out]`.
        interleaved: whether the outputs of gate and up alternate.
        shared: HF name of the shared expert, if there is one.
    """
    megatron = MLP
    mappings: Mappings = [] if shared is None else _shared_expert(f"{hf}.{shared}")
    for kind, suffix in (("weight", ""), ("bias", "_bias")) if bias else (("weight", ""),):
        layout = {"transposed": transposed and kind == "weight"}
        mappings += [
            AutoMapping(f"{megatron}.router.{kind}", f"{hf}.{router}.{kind}"),
            FusedGatedExpertMapping(
                f"{megatron}.experts.linear_fc1.{kind}*", f"{hf}.{gate_up}{suffix}", interleaved=interleaved, **layout
            ),
            FusedExpertMapping(f"{megatron}.experts.linear_fc2.{kind}*", f"{hf}.{down}{suffix}", **layout),
        ]
    return mappings


# Megatron's and the usual HF names of what a prediction layer has in addition to a decoder layer.
_PREDICTION_NAMES = {"enorm": "enorm", "hnorm": "hnorm", "eh_proj": "eh_proj", "final_layernorm": "shared_head.norm"}
# The HF names where a module holds them for its one layer.
_MODULE_NAMES = {
    "enorm": "pre_fc_norm_embedding",
    "hnorm": "pre_fc_norm_hidden",
    "eh_proj": "fc",
    "final_layernorm": "norm",
}
_NO_PREDICTION = "the Megatron model has no multi-token prediction layers (mtp_num_layers)"


def multi_token_prediction(
    layer: Mappings,
    config: Any,
    *,
    hf: str = "model",
    lm_head: str = "lm_head",
    layers: str = "layers",
    first: int | None = None,
    names: Mapping[str, str] = MappingProxyType(_PREDICTION_NAMES),
    hidden_state_first: bool = False,
) -> Mappings:
    """Layers behind the last one that predict further tokens, stored under the numbers that follow it.

    The HF tensors are dropped if the Megatron model has no such layers (`mtp_num_layers`).

    Args:
        layer: the mappings of a decoder layer, which a prediction layer has too.
        config: the HF config.
        layers: HF name of the list of prediction layers, below `hf`.
        first: number of the first; default: behind the decoder layers.
        names: HF names of the norms and the projection by Megatron's.
        hidden_state_first: whether the projection's input is the hidden state, then the embedding.
    """
    mappings: Mappings = []
    first = config.num_hidden_layers if first is None else first
    for index in range(getattr(config, "num_nextn_predict_layers", None) or 0):
        number = first + index
        theirs = f"{hf}.{layers}.{number}"
        own = {ours: f"{theirs}.{name}" for ours, name in names.items()}
        mappings += _prediction_layer(layer, index, number, own, hidden_state_first=hidden_state_first)
        mappings += [
            Tied(f"{theirs}.embed_tokens.weight", same_as=f"{hf}.embed_tokens.weight"),
            Tied(f"{theirs}.shared_head.head.weight", same_as=f"{lm_head}.weight"),
        ]
    return _or_dropped(mappings)


def prediction_module(layer: Mappings, *, hf: str = "mtp", decoder: str = "model") -> Mappings:
    """One prediction layer, stored in a module of its own with its norms and projection beside it.

    The HF tensors are dropped if the Megatron model has no such layer (`mtp_num_layers`).

    Args:
        layer: the mappings of a decoder layer, which the prediction layer has too.
        hf, decoder: HF names of the module and of the decoder, each with a list of layers.
    """
    own = {ours: f"{hf}.{name}" for ours, name in _MODULE_NAMES.items()}
    return _or_dropped(_prediction_layer(layer, 0, 0, own, hf=(f"{decoder}.", f"{hf}.")))


def no_multi_token_prediction(*, hf: str = "mtp") -> Mappings:
    """Leaves out a prediction layer that is stored in a module of its own, as transformers does.

    Args:
        hf: HF name of the module.
    """
    return [Dropped(f"{hf}.**", _NO_PREDICTION)]


def _prediction_layer(
    layer: Mappings,
    index: int,
    number: int,
    own: Mapping[str, str],
    *,
    hf: tuple[str, str] = ("", ""),
    hidden_state_first: bool = False,
) -> Mappings:
    """Prediction layer `index` of a Megatron model.

    Args:
        number: of the HF layer.
        own: HF names of the norms and the projection by Megatron's.
        hf: what the names of a decoder layer begin with, and those of this layer.
    """
    megatron = f"mtp.layers.{index}"
    mappings: Mappings = []
    for ours, name in own.items():
        kind = SwappedColumnsMapping if hidden_state_first and ours == "eh_proj" else AutoMapping
        mappings.append(kind(f"{megatron}.{ours}.weight", f"{name}.weight"))
    names = (f"decoder.layers.{number}.", f"{megatron}.transformer_layer.")
    mappings += [
        mapping.resolve([str(number)]).renamed(megatron=names, hf=hf)
        for mapping in layer
        if not isinstance(mapping, Dropped)
    ]
    return mappings


def _or_dropped(mappings: Mappings) -> Mappings:
    """The mappings, and marks by which their HF tensors are dropped where no Megatron weight reads them."""
    read = [mapping for mapping in mappings if not isinstance(mapping, Dropped)]
    return [*mappings, *(Dropped(name, _NO_PREDICTION) for mapping in read for name in mapping.hf_names.values())]


def gated_mlp(
    *,
    hf: str = "model.layers.*.mlp",
    bias: bool = False,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    fused_gate_up: str | None = None,
) -> Mappings:
    """MLP with gate, up and down projections.

    Args:
        bias: whether they have biases.
        names: their HF names.
        fused_gate_up: HF name of one projection that holds the gate, then up; default: two projections.
    """
    megatron = MLP
    mappings: Mappings = []
    for kind in _kinds(bias):
        gate, up, down = (f"{hf}.{name}.{kind}" for name in names)
        if fused_gate_up is not None:
            mappings.append(AutoMapping(f"{megatron}.linear_fc1.{kind}", f"{hf}.{fused_gate_up}.{kind}"))
        else:
            mappings.append(GatedMLPMapping(f"{megatron}.linear_fc1.{kind}", gate=gate, up=up))
        mappings.append(AutoMapping(f"{megatron}.linear_fc2.{kind}", down))
    return mappings


def mlp(
    *, hf: str = "model.layers.*.mlp", up: str = "up_proj", down: str = "down_proj", bias: bool = False
) -> Mappings:
    """MLP of two layers, without a gate."""
    names = (("linear_fc1", up), ("linear_fc2", down))
    return [
        AutoMapping(f"{LAYER}.mlp.{megatron}.{kind}", f"{hf}.{name}.{kind}")
        for megatron, name in names
        for kind in _kinds(bias)
    ]
