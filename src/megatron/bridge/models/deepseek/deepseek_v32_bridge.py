"""DeepSeek-V3.2."""

from megatron.bridge.models.conversion import blocks
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.deepseek.deepseek_v3_bridge import DeepseekV3Bridge


@MegatronModelBridge.register_bridge(source="DeepseekV32ForCausalLM", target="GPTModel", model_type="deepseek_v32")
class DeepseekV32Bridge(DeepseekV3Bridge):
    """DeepSeek-V3 with sparse attention, and a list of which layers have experts."""

    CONFIG_MAPPING = {
        **DeepseekV3Bridge.CONFIG_MAPPING,
        "index_topk": "dsa_indexer_topk",
        "index_head_dim": "dsa_indexer_head_dim",
        "index_n_heads": "dsa_indexer_n_heads",
    }
    CONFIG_CHECKED = (*DeepseekV3Bridge.CONFIG_CHECKED, "mlp_layer_types")
    CONFIG_IRRELEVANT = {**DeepseekV3Bridge.CONFIG_IRRELEVANT, "layer_types": "the kind of cache of each layer"}
    CONFIG_FIXED = {**DeepseekV3Bridge.CONFIG_FIXED, "mlp_bias": False}
    CONFIG_DEFAULTS = {
        **DeepseekV3Bridge.CONFIG_DEFAULTS,
        "experimental_attention_variant": "dsa",
        "dsa_indexer_k_norm_epsilon": 1e-6,
        # A rotation of queries and keys alike, which makes them easier to store in FP8 and changes no score.
        "dsa_indexer_rotate_activation": False,
    }

    def attention_mappings(self) -> blocks.Mappings:
        return [*super().attention_mappings(), *blocks.attention_indexer()]
