"""Apertus."""

from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.conversion.param_mapping import AutoMapping


@MegatronModelBridge.register_bridge(source="ApertusForCausalLM", target="GPTModel", model_type="apertus")
class ApertusBridge(MegatronModelBridge):
    """Norms of q and k, and an MLP without a gate whose activation function is learned."""

    CONFIG = (
        *fields.decoder(hidden_act=None),
        fields.ATTENTION_BIAS,
        # The activation function is a module of this family's own.
        fields.Part(
            reads=("hidden_act",), fixed={"hidden_act": "xielu"}, to_hf=lambda provider: {"hidden_act": "xielu"}
        ),
        fields.not_read("hidden_dropout", "mlp_bias", "post_norm", "qk_norm"),
        fields.defaults(gated_linear_unit=False, qk_layernorm=True),
    )
    PROVIDER_CLASS = "megatron.bridge.models.apertus.modeling_apertus.ApertusProvider"

    def mapping_registry(self) -> MegatronMappingRegistry:
        bias = self.hf_config.attention_bias
        xielu = [
            AutoMapping(f"{blocks.LAYER}.mlp.activation_func.{name}", f"model.layers.*.mlp.act_fn.{name}")
            for name in ("alpha_p", "alpha_n", "beta", "eps")
        ]
        return MegatronMappingRegistry(
            *blocks.embeddings(tied=self.hf_config.tie_word_embeddings),
            *blocks.pre_norms(attention="attention_layernorm", mlp="feedforward_layernorm"),
            *blocks.attention(qkv_bias=bias, output_bias=bias, qk_norm=True),
            *blocks.mlp(),
            *xielu,
        )
