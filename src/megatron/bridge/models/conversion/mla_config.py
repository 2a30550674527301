"""The config fields of multi-latent attention, from Hugging Face and back: what the families share."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion import config_mapping

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# HF field -> provider field of multi-latent attention, in place of `DECODER_FIELDS`.
MLA_FIELDS = {
    **{hf: ours for hf, ours in config_mapping.DECODER_FIELDS.items() if hf != "head_dim"},
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_head_dim",
    "qk_rope_head_dim": "qk_pos_emb_head_dim",
    "v_head_dim": "v_head_dim",
}

# Fields that other fields give.
MLA_IRRELEVANT = {
    "qk_head_dim": "the sum of qk_nope_head_dim and qk_rope_head_dim",
    "head_dim": "another name of qk_rope_head_dim",
}

# Values without which transformers' computation is another one.
MLA_FIXED = {"attention_bias": False, "rope_interleave": True}


def latent_attention_fields(hf_config: "PretrainedConfig", where: str) -> dict[str, Any]:
    """The provider fields of multi-latent attention that are not the same on both sides.

    Raises:
        UnsupportedConfigError: a rotary embedding that cannot be represented, or grouped keys and values, which
            transformers does not compute either.
    """
    if hf_config.num_key_value_heads != hf_config.num_attention_heads:
        raise UnsupportedConfigError(
            f"{where}: num_key_value_heads {hf_config.num_key_value_heads} must equal num_attention_heads "
            f"{hf_config.num_attention_heads}: keys and values come from one latent"
        )
    return {"q_lora_rank": hf_config.q_lora_rank, **mla_rotary_fields(hf_config, where)}


def mla_rotary_fields(hf_config: "PretrainedConfig", where: str) -> dict[str, Any]:
    """The provider fields of multi-latent attention's rotary embedding: default or YaRN.

    Raises:
        UnsupportedConfigError: another kind, or numbers that megatron-core's YaRN for MLA has no place for.
    """
    parameters = config_mapping.rotary_fields(hf_config, where)["rope_parameters"]
    fields = {"rotary_base": float(parameters["rope_theta"]), "rope_parameters": parameters}
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        # megatron-core scales the softmax by the factor and mscale_all_dim even without YaRN.
        return {**fields, "rope_type": "rope", "rotary_scaling_factor": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
    mscale, mscale_all_dim = parameters.get("mscale") or 0.0, parameters.get("mscale_all_dim") or 0.0
    is_exact = not mscale_all_dim or mscale  # otherwise HF scales cos and sin by a number that does not fit
    others = [parameters.get(name) for name in ("attention_factor", "truncate", "partial_rotary_factor")]
    if kind != "yarn" or not is_exact or any(value is not None for value in others):
        raise UnsupportedConfigError(
            f"{where}: rope_parameters {parameters!r} cannot be represented with multi-latent attention; expected "
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
