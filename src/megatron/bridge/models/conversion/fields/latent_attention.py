"""Multi-latent attention (MLA, arXiv 2405.04434)."""

from typing import Any

from megatron.bridge.errors import UnsupportedConfigError
from megatron.bridge.models.conversion.fields.decoder import decoder
from megatron.bridge.models.conversion.fields.part import Part, same
from megatron.bridge.models.conversion.fields.rope import rotary_fields


def _latents(hf_config: Any) -> dict[str, Any]:
    """The latent of the queries, which may be absent.

    Raises:
        UnsupportedConfigError: grouped keys and values, which transformers does not compute either.
    """
    if hf_config.num_key_value_heads != hf_config.num_attention_heads:
        raise UnsupportedConfigError(
            f"num_key_value_heads {hf_config.num_key_value_heads} must equal num_attention_heads "
            f"{hf_config.num_attention_heads}: keys and values come from one latent"
        )
    return {"q_lora_rank": hf_config.q_lora_rank}


def _rotary_fields(hf_config: Any) -> dict[str, Any]:
    """The rotary embedding: default or YaRN.

    Raises:
        UnsupportedConfigError: another kind, or numbers that megatron-core's YaRN for MLA has no place for.
    """
    parameters = rotary_fields(hf_config)["rope_parameters"]
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


# A decoder with multi-latent attention: in place of `DECODER`.
LATENT_ATTENTION_DECODER = (
    *decoder(head_dim=None, rope_parameters=None),
    same(
        "kv_lora_rank", "v_head_dim", "rope_parameters",
        qk_nope_head_dim="qk_head_dim", qk_rope_head_dim="qk_pos_emb_head_dim",
    ),
    Part(
        reads=("q_lora_rank",),
        irrelevant={
            "qk_head_dim": "the sum of qk_nope_head_dim and qk_rope_head_dim",
            "head_dim": "another name of qk_rope_head_dim",
        },
        # Values without which transformers' computation is another one.
        fixed={"attention_bias": False, "rope_interleave": True},
        defaults={"qk_layernorm": True},
        to_provider=lambda hf_config: _latents(hf_config) | _rotary_fields(hf_config),
        to_hf=lambda provider: {"q_lora_rank": provider.q_lora_rank},
    ),
)  # fmt: skip
