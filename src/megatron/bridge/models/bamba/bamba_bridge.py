"""Bamba: Mamba-2 or attention, followed by an MLP, in each layer."""

from typing import TYPE_CHECKING, Any

from megatron.bridge.models.conversion import blocks, config_mapping
from megatron.bridge.models.conversion.blocks import LAYER
from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
from megatron.bridge.models.conversion.param_mapping import AutoMapping, Dropped

if TYPE_CHECKING:
    from transformers import BambaConfig


@MegatronModelBridge.register_bridge(source="BambaForCausalLM", target="HybridModel", model_type="bamba")
class BambaBridge(MegatronModelBridge):
    """An HF layer is two of HybridModel: Mamba-2 or attention, and then the MLP, each with its norm in front."""

    PROVIDER_CLASS = "megatron.bridge.models.hybrid_provider.HybridProvider"
    CONFIG_MAPPING = {
        **{
            hf: ours
            for hf, ours in config_mapping.DECODER_FIELDS.items()
            if hf not in ("num_hidden_layers", "head_dim", "rope_parameters")
        },
        "mamba_n_heads": "mamba_num_heads",
        "mamba_d_head": "mamba_head_dim",
        "mamba_n_groups": "mamba_num_groups",
        "mamba_d_state": "mamba_state_dim",
        "mamba_chunk_size": "mamba_chunk_size",
    }
    CONFIG_CHECKED = (
        *MegatronModelBridge.CONFIG_CHECKED,
        *("num_hidden_layers", "attn_layer_indices", "time_step_limit", "mamba_expand"),
    )
    CONFIG_IRRELEVANT = {
        "layers_block_type": "derived from attn_layer_indices",
        "layer_types": "derived from attn_layer_indices",
        "num_logits_to_keep": "generation",
        "z_loss_coefficient": "training",
        **config_mapping.not_read("use_mamba_kernels", "attn_rotary_emb", "sliding_window"),
    }
    CONFIG_FIXED = {
        "attention_bias": False,
        "mlp_bias": False,
        "mamba_proj_bias": False,
        "mamba_conv_bias": True,
        "mamba_d_conv": 4,
    }

    def hf_config_to_provider_kwargs(self, hf_config: "BambaConfig") -> dict[str, Any]:
        pattern = "".join("*-" if kind == "full_attention" else "M-" for kind in hf_config.layers_block_type)
        return {
            **super().hf_config_to_provider_kwargs(hf_config),
            **config_mapping.step_limit_fields(hf_config, self._where(hf_config)),
            "num_layers": len(pattern),
            "hybrid_layer_pattern": pattern,
        }

    def megatron_to_hf_config(self, provider: Any) -> dict[str, Any]:
        mixers = provider.hybrid_layer_pattern.replace("|", "")[::2]
        return {
            **super().megatron_to_hf_config(provider),
            **config_mapping.step_limit_values(provider),
            "num_hidden_layers": len(mixers),
            "attn_layer_indices": [layer for layer, mixer in enumerate(mixers) if mixer == "*"],
            "mamba_expand": provider.mamba_num_heads * provider.mamba_head_dim // provider.hidden_size,
        }

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
