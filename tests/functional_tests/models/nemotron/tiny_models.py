"""Tiny models of Nemotron, Nemotron-H and Nemotron 3."""

from tests.tiny_model import BIAS, TIED, TinyModel

_NEMOTRON_H = {
    "layers_block_type": ["linear_attention", "full_attention", "mlp", "linear_attention"],
    "head_dim": 24,
    "ssm_state_size": 16,
    "mamba_num_heads": 16,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "chunk_size": 16,
    # Above many of the step sizes, so that the limit shows.
    "time_step_min": 0.5,
}
_NEMOTRON_3 = {
    **_NEMOTRON_H,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "linear_attention", "mlp"],
    "time_step_min": 0.001,
    "n_routed_experts": 8,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 40,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 2.5,
    "layer_norm_epsilon": 1e-4,
}

NEMOTRON_H_MODELS = (
    TinyModel("nemotron-h", "NemotronHForCausalLM", _NEMOTRON_H),
    TinyModel("nemotron-3", "NemotronHForCausalLM", _NEMOTRON_3),
    TinyModel("nemotron-3-latent", "NemotronHForCausalLM", {**_NEMOTRON_3, "moe_latent_size": 40}),
)

NEMOTRON_MODELS = (
    TinyModel("nemotron", "NemotronForCausalLM", {"head_dim": 24}),
    TinyModel("nemotron-tied-biases", "NemotronForCausalLM", {**TIED, **BIAS, "mlp_bias": True}),
)
TINY_MODELS = (*NEMOTRON_H_MODELS, *NEMOTRON_MODELS)
