"""Tiny models of ERNIE 4.5."""

from tests.tiny_model import TinyModel

_ERNIE_MOE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "head_dim": 16}

ERNIE_4_5_MOE_MODELS = (
    TinyModel("ernie-4.5-moe", "Ernie4_5_MoeForCausalLM", {**_ERNIE_MOE, "moe_num_shared_experts": 2}),
    TinyModel(
        "ernie-4.5-moe-some-layers",
        "Ernie4_5_MoeForCausalLM",
        {**_ERNIE_MOE, **{"moe_num_shared_experts": 0, "moe_layer_interval": 2, "tie_word_embeddings": True}},
    ),
)

ERNIE_4_5_MODELS = (
    TinyModel("ernie-4.5", "Ernie4_5ForCausalLM", {"head_dim": 24}),
    TinyModel("ernie-4.5-tied-bias", "Ernie4_5ForCausalLM", {"tie_word_embeddings": True, "use_bias": True}),
)
TINY_MODELS = (*ERNIE_4_5_MOE_MODELS, *ERNIE_4_5_MODELS)
