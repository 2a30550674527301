"""Ling 2.0, which transformers does not have: the same computation as GLM-4.5's, under other names.

The reference is transformers' GLM-4.5 with its tensors renamed to the published names; the config class stands in for
the model's own code. So the arithmetic is compared with a library's, the names only with their published description.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import TINY_MODELS, TinyModel

CONFIG_CODE = """
from transformers import PretrainedConfig

class BailingMoeV2Config(PretrainedConfig):
    model_type = "bailing_moe"

    def __init__(self, rope_theta=600000.0, partial_rotary_factor=0.5, **kwargs):
        self.rope_theta = rope_theta
        self.partial_rotary_factor = partial_rotary_factor
        super().__init__(**kwargs)
"""
LING = "BailingMoeV2ForCausalLM"
LING_VARIANTS: dict[str, dict[str, Any]] = {
    "ling": {},
    "ling-groups": {"attention_bias": True, "n_group": 4, "topk_group": 2},
}
NAMES = {
    "embed_tokens": "word_embeddings",
    "self_attn.o_proj": "attention.dense",
    "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm",
    "gate.e_score_correction_bias": "gate.expert_bias",
}
SAME_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act"),
    *("moe_intermediate_size", "num_experts_per_tok", "n_group", "topk_group", "norm_topk_prob"),
    *("routed_scaling_factor", "first_k_dense_replace", "use_qk_norm"),
)
FIXED = {
    **{"use_bias": False, "use_rmsnorm": True, "embedding_dropout": 0.0, "output_dropout": 0.0, "rope_scaling": None},
    **{"moe_router_enable_expert_bias": True, "score_function": "sigmoid", "router_dtype": "fp32"},
    **{"num_nextn_predict_layers": 0, "max_window_layers": 20},
}


def save_ling(folder: Path, variant: str) -> Any:
    """Saves GLM-4.5 under Ling's names; returns the model."""
    glm = TINY_MODELS["glm4-moe"]
    model = TinyModel(variant, glm.architecture, {**glm.config, **LING_VARIANTS[variant]}).save(folder)
    hf = model.config
    theirs = {
        **{name: getattr(hf, name) for name in SAME_FIELDS},
        **FIXED,
        "num_experts": hf.n_routed_experts,
        "num_shared_experts": hf.n_shared_experts,
        "use_qkv_bias": hf.attention_bias,
        "rope_theta": hf.rope_parameters["rope_theta"],
        "partial_rotary_factor": hf.rope_parameters.get("partial_rotary_factor", 1.0),
        "model_type": "bailing_moe",
        "architectures": [LING],
        "auto_map": {"AutoConfig": "configuration_bailing_moe_v2.BailingMoeV2Config"},
    }
    (folder / "config.json").write_text(json.dumps(theirs))
    (folder / "configuration_bailing_moe_v2.py").write_text(CONFIG_CODE)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if ".self_attn.q_proj." in name]:
        parts = [tensors.pop(name.replace("q_proj", f"{role}_proj")) for role in "qkv"]
        tensors[name.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
    for ours, other in NAMES.items():
        tensors = {name.replace(ours, other): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return model
