"""Tiny models of Ling 2.0, which transformers does not have: the computation of GLM-4.5, under other names.

The reference is transformers' GLM-4.5 with its tensors renamed to the published names; the config class stands in for
the model's own code. So the arithmetic is compared with a library's, the names only with their published description.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.functional_tests.models.bailing import configuration_bailing_moe_v2
from tests.functional_tests.models.glm.tiny_models import GLM4_MOE_MODELS
from tests.tiny_model import TinyModel

LING = "BailingMoeV2ForCausalLM"
_GLM = GLM4_MOE_MODELS[0]
_NAMES = {
    "embed_tokens": "word_embeddings",
    "self_attn.o_proj": "attention.dense",
    "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm",
    "gate.e_score_correction_bias": "gate.expert_bias",
}
_SAME_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
    "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act",
    "moe_intermediate_size", "num_experts_per_tok", "n_group", "topk_group", "norm_topk_prob",
    "routed_scaling_factor", "first_k_dense_replace", "use_qk_norm",
)  # fmt: skip
_FIXED = {
    "use_bias": False, "use_rmsnorm": True, "embedding_dropout": 0.0, "output_dropout": 0.0, "rope_scaling": None,
    "moe_router_enable_expert_bias": True, "score_function": "sigmoid", "router_dtype": "fp32",
    "num_nextn_predict_layers": 0, "max_window_layers": 20, "architectures": [LING],
}  # fmt: skip
_CODE = {"model_type": "bailing_moe", "auto_map": {"AutoConfig": "configuration_bailing_moe_v2.BailingMoeV2Config"}}


class LingModel(TinyModel):
    """GLM-4.5 under Ling's names."""

    trust_remote_code = True

    @property
    def published_architecture(self) -> str:
        return LING

    @property
    def _glm(self) -> TinyModel:
        return TinyModel(self.name, self.architecture, self.config)

    def hf_config(self) -> transformers.PretrainedConfig:
        return configuration_bailing_moe_v2.BailingMoeV2Config(**self._fields())

    def empty_model(self) -> transformers.PreTrainedModel:
        return self._glm.empty_model()

    def hf_model(self, seed: int | None = None) -> transformers.PreTrainedModel:
        return self._glm.hf_model(seed)

    def save(
        self, folder: Path, dtype: torch.dtype = torch.float32, seed: int | None = None
    ) -> transformers.PreTrainedModel:
        model = self._glm.save(folder, dtype, seed)
        (folder / "config.json").write_text(json.dumps({**self._fields(), **_CODE}))
        shutil.copy(configuration_bailing_moe_v2.__file__, folder)
        tensors = load_file(folder / "model.safetensors")
        for name in [name for name in tensors if ".self_attn.q_proj." in name]:
            parts = [tensors.pop(name.replace("q_proj", f"{role}_proj")) for role in "qkv"]
            tensors[name.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
        for ours, other in _NAMES.items():
            tensors = {name.replace(ours, other): tensor for name, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return model

    def _fields(self) -> dict[str, Any]:
        glm = self._glm.hf_config()
        return {
            **{name: getattr(glm, name) for name in _SAME_FIELDS},
            **_FIXED,
            "num_experts": glm.n_routed_experts,
            "num_shared_experts": glm.n_shared_experts,
            "use_qkv_bias": glm.attention_bias,
            "rope_theta": glm.rope_parameters["rope_theta"],
            "partial_rotary_factor": glm.rope_parameters.get("partial_rotary_factor", 1.0),
        }


BAILING_MOE_V2_MODELS = (
    LingModel("ling", "Glm4MoeForCausalLM", _GLM.config),
    LingModel(
        "ling-groups", "Glm4MoeForCausalLM", {**_GLM.config, "attention_bias": True, "n_group": 4, "topk_group": 2}
    ),
)
TINY_MODELS = BAILING_MOE_V2_MODELS
