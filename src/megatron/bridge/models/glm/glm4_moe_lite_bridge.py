"""GLM-4.7-Flash."""

from megatron.bridge.models.conversion import mla_config, moe_config
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.deepseek.deepseek_v3_bridge import DeepseekV3Bridge


@MegatronModelBridge.register_bridge(source="Glm4MoeLiteForCausalLM", target="GPTModel", model_type="glm4_moe_lite")
class Glm4MoeLiteBridge(DeepseekV3Bridge):
    """DeepSeek-V3 with a list of which layers have experts."""

    CONFIG_CHECKED = (
        "hidden_act",
        "q_lora_rank",
        "num_nextn_predict_layers",
        "mlp_layer_types",
        "n_shared_experts",
        *moe_config.GROUPED_SIGMOID_FIELDS,
    )
    CONFIG_IRRELEVANT = {
        **DeepseekV3Bridge.CONFIG_IRRELEVANT,
        "first_k_dense_replace": "transformers reads mlp_layer_types",
    }
    CONFIG_FIXED = {**mla_config.MLA_FIXED, "topk_method": "noaux_tc"}
