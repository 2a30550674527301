"""Bamba: Mamba-2 or attention, followed by an MLP, in each layer."""

from dataclasses import replace

from megatron.bridge.models.conversion.blocks import LAYER
from megatron.bridge.models.conversion.family import MegatronMappingRegistry, MegatronModelBridge, blocks, fields
from megatron.bridge.models.conversion.param_mapping import AutoMapping, Dropped


def _pattern(hf_config: fields.HFConfig) -> fields.Values:
    pattern = "".join("*-" if kind == "full_attention" else "M-" for kind in hf_config.layers_block_type)
    return {"num_layers": len(pattern), "hybrid_layer_pattern": pattern}


def _layers(provider: fields.Provider) -> fields.Values:
    mixers = provider.hybrid_layer_pattern.replace("|", "")[::2]
    return {
        "num_hidden_layers": len(mixers),
        "attn_layer_indices": [layer for layer, mixer in enumerate(mixers) if mixer == "*"],
        "mamba_expand": fields.mixer_width(provider) // provider.hidden_size,
    }


@MegatronModelBridge.register_bridge(source="BambaForCausalLM", target="HybridModel", model_type="bamba")
class BambaBridge(MegatronModelBridge):
    """Each HF layer is two layers of HybridModel: Mamba-2 or attention, then the MLP, each behind a norm."""

    PROVIDER_CLASS = "megatron.bridge.models.hybrid_provider.HybridProvider"
    CONFIG = (
        *fields.decoder(num_hidden_layers=None, head_dim=None, hidden_act=None),
        # It is the mixers' too, and megatron-core's have this one.
        replace(fields.activation(), fixed={"hidden_act": "silu"}),
        fields.PARTIAL_ROPE,
        fields.mamba("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state", "mamba_chunk_size"),
        fields.STEP_LIMIT,
        fields.Part(
            reads=("num_hidden_layers", "attn_layer_indices", "mamba_expand"), to_provider=_pattern, to_hf=_layers
        ),
        fields.irrelevant("derived from attn_layer_indices", "layers_block_type", "layer_types"),
        fields.irrelevant("generation", "num_logits_to_keep"),
        fields.irrelevant("training", "z_loss_coefficient"),
        fields.not_read("use_mamba_kernels", "attn_rotary_emb", "sliding_window"),
        fields.fixed(attention_bias=False, mlp_bias=False, mamba_proj_bias=False, mamba_conv_bias=True, mamba_d_conv=4),
    )

    def mapping_registry(self) -> MegatronMappingRegistry:
        config = self.hf_config
        layer = blocks.HF_LAYER
        norm = f"{layer}.input_layernorm.weight"
        mixer = [
            AutoMapping(f"{LAYER}.mixer.in_proj.layer_norm_weight", norm),
            AutoMapping(f"{LAYER}.self_attention.linear_qkv.layer_norm_weight", norm),
            *blocks.mamba(
                hf=f"{layer}.mamba",
                num_heads=config.mamba_n_heads,
                head_dim=config.mamba_d_head,
                num_groups=config.mamba_n_groups,
                state_size=config.mamba_d_state,
            ),
            *blocks.attention(),
        ]
        mlp = [
            AutoMapping(f"{LAYER}.mlp.linear_fc1.layer_norm_weight", f"{layer}.pre_ff_layernorm.weight"),
            *blocks.gated_mlp(hf=f"{layer}.feed_forward"),
        ]
        mappings = list(
            blocks.embeddings(tied=config.tie_word_embeddings, norm="final_layernorm", megatron_norm="final_norm")
        )
        for mapping in (*mixer, *mlp):
            if isinstance(mapping, Dropped):
                mappings.append(mapping)
                continue
            for index in range(config.num_hidden_layers):
                number = 2 * index + (mapping in mlp)
                moved = mapping.resolve([str(index)])
                mappings.append(moved.renamed(megatron=(f"layers.{index}.", f"layers.{number}.")))
        return MegatronMappingRegistry(*mappings)
