"""DeepSeek-V2."""

from megatron.bridge.models.conversion.family import MegatronModelBridge, fields
from megatron.bridge.models.deepseek.deepseek_v3_bridge import DEEPSEEK, DeepseekV3Bridge


@MegatronModelBridge.register_bridge(source="DeepseekV2ForCausalLM", target="GPTModel", model_type="deepseek_v2")
class DeepseekV2Bridge(DeepseekV3Bridge):
    """Like DeepSeek-V3, but experts are chosen by softmax scores without a bias, and groups by their best expert."""

    ROUTER_BIAS = None
    CONFIG = (
        *DEEPSEEK,
        fields.EXPERT_LAYERS,
        fields.GROUP_LIMITED_ROUTER,
        fields.fixed(moe_layer_freq=1, scoring_func="softmax", norm_topk_prob=False, mlp_bias=False),
        fields.ROUTER_IN_FP32,
        fields.defaults(moe_aux_loss_coeff=1e-3, moe_router_pre_softmax=True),
    )
