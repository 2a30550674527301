"""Tiny models of OLMo 2, OLMo 3 and OLMoE."""

from tests.tiny_model import BIAS, TinyModel

_OLMO3_YARN = {
    "rope_parameters": {
        "full_attention": {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 1e4,
            "original_max_position_embeddings": 64,
        },
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
}
_OLMOE = {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}

OLMOE_MODELS = (
    TinyModel("olmoe", "OlmoeForCausalLM", _OLMOE),
    TinyModel("olmoe-softmax-last", "OlmoeForCausalLM", {**_OLMOE, "norm_topk_prob": True, "attention_bias": True}),
)

OLMO2_MODELS = (
    TinyModel("olmo2", "Olmo2ForCausalLM"),
    TinyModel("olmo2-tied-bias", "Olmo2ForCausalLM", {"tie_word_embeddings": True, **BIAS}),
)

OLMO3_MODELS = (
    TinyModel("olmo3", "Olmo3ForCausalLM", {"sliding_window": 8}),
    TinyModel("olmo3-yarn-rope", "Olmo3ForCausalLM", {"sliding_window": 8, **_OLMO3_YARN}),
)
TINY_MODELS = (*OLMOE_MODELS, *OLMO2_MODELS, *OLMO3_MODELS)
