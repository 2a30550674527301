"""GLM-4.7-Flash."""

from megatron.bridge.models.conversion.family import MegatronModelBridge, fields
from megatron.bridge.models.deepseek.deepseek_v3_bridge import DEEPSEEK, DeepseekV3Bridge


@MegatronModelBridge.register_bridge(source="Glm4MoeLiteForCausalLM", target="GPTModel", model_type="glm4_moe_lite")
class Glm4MoeLiteBridge(DeepseekV3Bridge):
    """Like DeepSeek-V3, with a list that says which layers have experts."""

    CONFIG = (
        *DEEPSEEK,
        fields.expert_layers("mlp_layer_types", "n_shared_experts"),
        fields.GROUPED_SIGMOID_ROUTER,
        fields.PREDICTION_LAYERS,
        fields.irrelevant("transformers reads mlp_layer_types", "first_k_dense_replace"),
        fields.fixed(topk_method="noaux_tc"),
    )
