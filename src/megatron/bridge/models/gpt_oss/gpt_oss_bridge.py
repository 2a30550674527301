"""gpt-oss."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, moe_config
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge

if TYPE_CHECKING:
    from transformers import GptOssConfig


@MegatronModelBridge.register_bridge(source="GptOssForCausalLM", target="GPTModel", model_type="gpt_oss")
class GptOssBridge(MegatronModelBridge):
    """Attention sinks, windows on every other layer, biases everywhere, and experts with a clamped SwiGLU."""

    CONFIG_MAPPING = {
        **MegatronModelBridge.CONFIG_MAPPING,
        "intermediate_size": "moe_ffn_hidden_size",
        "num_local_experts": "num_moe_experts",
        "num_experts_per_tok": "moe_router_topk",
        "router_aux_loss_coef": "moe_aux_loss_coeff",
        "swiglu_limit": "activation_func_clamp_value",
    }
    CONFIG_CHECKED = ("rope_parameters", "sliding_window", "layer_types")
    CONFIG_IRRELEVANT = {
        "output_router_logits": "what the HF model returns",
        "experts_per_token": "another name of num_experts_per_tok",
        "initial_context_length": "transformers reads rope_parameters",
    }
    CONFIG_FIXED = {"hidden_act": "silu", "attention_bias": True, "swiglu_alpha": 1.702}
    CONFIG_DEFAULTS = {
        **MegatronModelBridge.CONFIG_DEFAULTS,
        **moe_config.MOE_DEFAULTS,
        "add_bias_linear": True,
        "expert_tensor_parallel_size": 1,  # megatron-core 0.19 does not cut experts with biases
        "softmax_type": "learnable",
        "glu_linear_offset": 1.0,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "GptOssConfig") -> dict[str, Any]:
        from megatron.core.activations import quick_gelu

        return {**super().hf_config_to_provider_kwargs(hf_config), "activation_func": quick_gelu}

    def mapping_registry(self) -> MegatronMappingRegistry:
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(),
            *blocks.attention(qkv_bias=True, output_bias=True, sinks="sinks"),
            *blocks.fused_moe(bias=True, transposed=True, interleaved=True),
        )
