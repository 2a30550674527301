"""Multi-latent attention (MLA, arXiv 2405.04434)."""

from types import SimpleNamespace

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields.common import decoder
from megatron.bridge.models.conversion.fields.part import (
    HFConfig,
    Part,
    Parts,
    Provider,
    Values,
    defaults,
    fixed,
    irrelevant,
    same,
    turned_into,
)
from megatron.bridge.models.conversion.fields.rope import rotary_fields


def _latents(hf_config: HFConfig) -> Values:
    """The rank of the queries' latent; `None` if they have none.

    Raises:
        UnsupportedConfigError: keys and values in groups, which transformers does not compute either.
    """
    if hf_config.num_key_value_heads != hf_config.num_attention_heads:
        raise UnsupportedConfigError(
            f"num_key_value_heads {hf_config.num_key_value_heads} must equal num_attention_heads "
            f"{hf_config.num_attention_heads}: keys and values come from one latent"
        )
    return {"q_lora_rank": hf_config.q_lora_rank}


def _rotary_fields(hf_config: HFConfig) -> Values:
    """The rotary embedding: default or YaRN.

    Raises:
        UnsupportedConfigError: another kind, or numbers for which megatron-core's YaRN for MLA has no field.
    """
    rotary_fields(hf_config)  # which checks them
    parameters = dict(hf_config.rope_parameters)
    fields = {"rotary_base": float(parameters.pop("rope_theta")), "rope_parameters": parameters}
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        # Even without YaRN, megatron-core scales the softmax by the factor and mscale_all_dim.
        return {**fields, "rope_type": "rope", "rotary_scaling_factor": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
    mscale, mscale_all_dim = parameters.get("mscale") or 0.0, parameters.get("mscale_all_dim") or 0.0
    is_exact = not mscale_all_dim or mscale  # otherwise HF scales cos and sin by a number of its own
    without_field = [parameters.get(name) for name in ("attention_factor", "truncate", "partial_rotary_factor")]
    if kind != "yarn" or not is_exact or any(value is not None for value in without_field):
        raise UnsupportedConfigError(
            f"rope_parameters {parameters!r} cannot be represented with multi-latent attention; expected "
            "rope_type default, or yarn with mscale if there is mscale_all_dim, and without "
            "attention_factor, truncate and partial_rotary_factor"
        )
    return {
        **fields,
        "rope_type": "yarn",
        "rotary_scaling_factor": float(parameters["factor"]),
        "original_max_position_embeddings": int(parameters["original_max_position_embeddings"]),
        "beta_fast": float(parameters.get("beta_fast") or 32),
        "beta_slow": float(parameters.get("beta_slow") or 1),
        # Without mscale_all_dim HF ignores mscale.
        "mscale": float(mscale) if mscale_all_dim else 1.0,
        "mscale_all_dim": float(mscale_all_dim),
    }


def _rotary_values(provider: Provider) -> Values:
    """The inverse of `_rotary_fields`: what the HF config said, or if the fields were changed since, what they say."""
    stated = {"rope_type": "default", **(provider.rope_parameters or {}), "rope_theta": provider.rotary_base}
    try:
        implied = _rotary_fields(SimpleNamespace(rope_parameters=stated))
    except UnsupportedConfigError:
        implied = {"rope_type": None}
    if all(getattr(provider, name) == value for name, value in implied.items() if name != "rope_parameters"):
        return {"rope_parameters": stated}
    changed = {"rope_type": "default", "rope_theta": provider.rotary_base}
    if provider.rope_type == "yarn":
        changed |= {"rope_type": "yarn", "factor": provider.rotary_scaling_factor}
        names = ("original_max_position_embeddings", "beta_fast", "beta_slow")
        changed |= {name: getattr(provider, name) for name in names}
        if provider.mscale_all_dim:
            changed |= {"mscale": provider.mscale, "mscale_all_dim": provider.mscale_all_dim}
    return {"rope_parameters": changed}


# A decoder with multi-latent attention, to be used instead of `DECODER`.
LATENT_ATTENTION_DECODER = (
    *decoder(head_dim=None, rope_parameters=None),
    same(
        "kv_lora_rank", "v_head_dim",
        qk_nope_head_dim="qk_head_dim", qk_rope_head_dim="qk_pos_emb_head_dim",
    ),
    Part(
        # `qk_head_dim` is the sum of the two sizes of a query, and `head_dim` is another name of `qk_rope_head_dim`.
        reads=("q_lora_rank", "rope_parameters", "qk_head_dim", "head_dim"),
        # With other values, transformers computes something else.
        fixed={"attention_bias": False, "rope_interleave": True},
        defaults={"qk_layernorm": True},
        to_provider=lambda hf_config: _latents(hf_config) | _rotary_fields(hf_config),
        to_hf=lambda provider: {
            "q_lora_rank": provider.q_lora_rank,
            "qk_head_dim": provider.qk_head_dim + provider.qk_pos_emb_head_dim,
            "head_dim": provider.qk_pos_emb_head_dim,
            **_rotary_values(provider),
        },
    ),
)  # fmt: skip

# Sparse attention (DSA, arXiv 2512.02556): an indexer chooses the keys of each query.
SPARSE_ATTENTION: Parts = (
    same(index_topk="dsa_indexer_topk", index_head_dim="dsa_indexer_head_dim", index_n_heads="dsa_indexer_n_heads"),
    irrelevant("the kind of cache of each layer", "layer_types"),
    defaults(
        experimental_attention_variant="dsa",
        dsa_indexer_k_norm_epsilon=1e-6,
        # It would rotate queries and keys alike, which changes no score but makes them easier to store in FP8.
        dsa_indexer_rotate_activation=False,
    ),
)


def indexer_types(num_layers: int, freq: int, offset: int) -> list[str]:
    """Which layers choose keys ("full"), and which reuse those that an earlier layer chose ("shared").

    Args:
        freq, offset: megatron-core's `dsa_indexer_topk_freq` and `dsa_indexer_skip_topk_offset`.

    Example: `indexer_types(5, freq=2, offset=1)` is `['full', 'shared', 'full', 'shared', 'full']`.
    """
    return ["shared" if max(layer - max(offset, 1), 0) % freq else "full" for layer in range(1, num_layers + 1)]


def _index_schedule(hf_config: HFConfig) -> Values:
    kinds, num_layers = list(hf_config.indexer_types or ()), hf_config.num_hidden_layers
    freq, offset = 1, 1
    if "shared" in kinds:  # the first run of shared layers, and the layer behind it, make one period
        offset = kinds.index("shared")
        freq = [*kinds[offset:], "full"].index("full") + 1
    if indexer_types(num_layers, freq, offset) != kinds:
        raise UnsupportedConfigError(
            f"indexer_types {kinds} cannot be represented: megatron-core has one indexer "
            "every so many layers, after some in front that have one each"
        )
    num_prediction = getattr(hf_config, "num_nextn_predict_layers", None) or 0
    if "shared" in indexer_types(num_prediction, freq, offset):
        raise UnsupportedConfigError(
            f"num_nextn_predict_layers {num_prediction} cannot be represented: each "
            "prediction layer has an indexer, and megatron-core counts these layers like decoder layers, of which "
            f"only one in {freq} has one"
        )
    return {"dsa_indexer_topk_freq": freq, "dsa_indexer_skip_topk_offset": offset}


def _index_kinds(provider: Provider) -> Values:
    schedule = provider.dsa_indexer_topk_freq, provider.dsa_indexer_skip_topk_offset
    return {"indexer_types": indexer_types(provider.num_layers, *schedule)}


# Layers that reuse the keys that an earlier layer chose.
SHARED_INDICES: Parts = (
    Part(reads=("indexer_types",), to_provider=_index_schedule, to_hf=_index_kinds),
    turned_into("indexer_types", "index_topk_freq", "index_skip_topk_offset", "index_topk_pattern"),
    irrelevant("generation: runs of the prediction layer that share indices", "index_share_for_mtp_iteration"),
    fixed(indexer_rope_interleave=True),
    defaults(dsa_indexer_rope_interleaved=True),
)
