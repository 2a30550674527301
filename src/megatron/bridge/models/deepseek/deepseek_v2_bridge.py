"""DeepSeek-V2."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import fields
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.deepseek.deepseek_v3_bridge import DEEPSEEK, DeepseekV3Bridge

if TYPE_CHECKING:
    from transformers import DeepseekV2Config


def _router_fields(hf_config: "DeepseekV2Config") -> dict[str, Any]:
    if hf_config.topk_method == "greedy":
        return {}
    return {
        "moe_router_num_groups": hf_config.n_group,
        "moe_router_group_topk": hf_config.topk_group,
        "moe_router_group_score": "max",
    }


def _router_values(provider: Any) -> dict[str, Any]:
    return {
        "topk_method": "group_limited_greedy" if provider.moe_router_num_groups else "greedy",
        "n_group": provider.moe_router_num_groups,
        "topk_group": provider.moe_router_group_topk,
    }


@MegatronModelBridge.register_bridge(source="DeepseekV2ForCausalLM", target="GPTModel", model_type="deepseek_v2")
class DeepseekV2Bridge(DeepseekV3Bridge):
    """Like DeepSeek-V3, with experts chosen by softmax scores without a bias, and groups by their best expert."""

    ROUTER_BIAS = None
    CONFIG = (
        *DEEPSEEK,
        fields.EXPERT_LAYERS,
        fields.Part(reads=("topk_method", "n_group", "topk_group"), to_provider=_router_fields, to_hf=_router_values),
        fields.fixed(moe_layer_freq=1, scoring_func="softmax", norm_topk_prob=False, mlp_bias=False),
        fields.ROUTER_IN_FP32,
        fields.defaults(moe_aux_loss_coeff=1e-3, moe_router_pre_softmax=True),
    )
