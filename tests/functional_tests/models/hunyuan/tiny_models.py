"""Tiny models of Hunyuan, dense and with experts."""

from tests.tiny_model import BIAS, TIED, TinyModel, rope

_ALPHA_ROPE = rope("dynamic", alpha=50.0, factor=1.0)
_HUNYUAN_MOE = {"num_experts": 4, "moe_topk": 2, "head_dim": 16}

HUNYUAN_V1_MOE_MODELS = (
    TinyModel("hunyuan-moe", "HunYuanMoEV1ForCausalLM", _HUNYUAN_MOE),
    TinyModel(
        "hunyuan-moe-alpha",
        "HunYuanMoEV1ForCausalLM",
        {**_HUNYUAN_MOE, "moe_topk": 1, "attention_bias": True, **rope("dynamic", factor=1.0, alpha=50.0)},
    ),
)

HUNYUAN_V1_DENSE_MODELS = (
    TinyModel("hunyuan-dense", "HunYuanDenseV1ForCausalLM", {"head_dim": 24}),
    TinyModel("hunyuan-dense-alpha-rope", "HunYuanDenseV1ForCausalLM", {"head_dim": 16, **_ALPHA_ROPE}),
    TinyModel("hunyuan-dense-tied-bias", "HunYuanDenseV1ForCausalLM", {"head_dim": 16, **TIED, **BIAS}),
)
TINY_MODELS = (*HUNYUAN_V1_MOE_MODELS, *HUNYUAN_V1_DENSE_MODELS)
