"""Tiny models of GLM-4, GLM-4.5, GLM-4.7-Flash and GLM-5."""

from tests.functional_tests.models.deepseek.tiny_models import DEEPSEEK_V32, GROUPED_SIGMOID, MLA
from tests.tiny_model import TinyModel

_GLM4_MOE = {**GROUPED_SIGMOID, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "head_dim": 24}
_GLM4_MOE_LITE = {
    **MLA,
    **{name: value for name, value in GROUPED_SIGMOID.items() if name != "first_k_dense_replace"},
    "n_shared_experts": 1,
}

GLM_MOE_DSA_MODELS = (
    TinyModel("glm-moe-dsa", "GlmMoeDsaForCausalLM", {**DEEPSEEK_V32, "n_group": 1, "topk_group": 1}),
    TinyModel(
        "glm-moe-dsa-shared-indices",
        "GlmMoeDsaForCausalLM",
        {**DEEPSEEK_V32, "indexer_types": ["full", "shared"] * 2, "rms_norm_eps": 1e-5},
        config_json={"index_share_for_mtp_iteration": True, "moe_router_dtype": "float32"},
    ),
)

GLM4_MOE_MODELS = (
    TinyModel("glm4-moe", "Glm4MoeForCausalLM", {**_GLM4_MOE, "use_qk_norm": True}),
    TinyModel("glm4-moe-attention-bias", "Glm4MoeForCausalLM", {**_GLM4_MOE, "attention_bias": True}),
)

GLM4_MOE_LITE_MODELS = (
    TinyModel("glm4-moe-lite", "Glm4MoeLiteForCausalLM", _GLM4_MOE_LITE),
    TinyModel(
        "glm4-moe-lite-layer-types",
        "Glm4MoeLiteForCausalLM",
        {**_GLM4_MOE_LITE, "mlp_layer_types": ["sparse", "dense", "dense", "sparse"]},
    ),
)

GLM4_MODELS = (
    TinyModel("glm4", "Glm4ForCausalLM", {"head_dim": 16}),
    TinyModel("glm4-tied-no-bias", "Glm4ForCausalLM", {"tie_word_embeddings": True, "attention_bias": False}),
)
TINY_MODELS = (*GLM_MOE_DSA_MODELS, *GLM4_MOE_MODELS, *GLM4_MOE_LITE_MODELS, *GLM4_MODELS)
