"""An exported config describes the exported model, whatever was changed on its provider, or the export is refused.

Every family, with every provider field that changes the computation changed, one at a time: the exported folder gives
transformers the logits of the Megatron model, or an error names the field.
"""

import dataclasses
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from megatron.bridge import AutoBridge
from megatron.bridge.errors import BridgeError, PlanError, UnsupportedConfigError
from megatron.bridge.inference.full_logits import full_logits
from megatron.bridge.models.conversion import not_computing
from megatron.bridge.models.conversion.exported_config import exported_config
from megatron.bridge.models.conversion.not_computing import is_computing
from tests.rounding import NUM_INPUTS, reference
from tests.tiny_models import FIRST_VARIANTS, TINY_MODELS, TinyModel, randomize

# What megatron-core says of deprecated fields, and of values that it changes.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# The tensors of prediction layers, which transformers does not read.
PREDICTION = re.compile(r"mtp|layers\.[2-9]\.")
TOKENS = torch.randint(0, 100, (2, 40), generator=torch.Generator().manual_seed(1))

# Every field that changes the computation, with another value. Where that depends on what the field, or another one,
# holds, a function of the provider gives the new values of one field or several. A field that is in neither this table
# nor the package's of those that compute nothing fails a test: whoever adds one says here which kind it is.
OTHER: dict[str, Any] = {
    "num_layers": lambda p: _with_layers(p, 2),
    "hidden_size": 96,
    "num_attention_heads": 8,
    "num_query_groups": lambda p: {"num_query_groups": 4 if p.num_query_groups == 2 else 2},
    "ffn_hidden_size": 64,
    "kv_channels": 32,
    "vocab_size": 160,
    "seq_length": lambda p: {"seq_length": 20},
    "share_embeddings_and_output_weights": None,
    "layernorm_epsilon": 1e-2,
    "latent_layernorm_epsilon": 1e-2,
    "normalization": lambda p: {"normalization": "LayerNorm" if p.normalization == "RMSNorm" else "RMSNorm"},
    "layernorm_zero_centered_gamma": None,
    "norm_bias": None,
    "use_pre_norms": None,
    "use_post_norms": None,
    "apply_residual_connection_post_layernorm": None,
    "parallel_attention_and_mlp": None,
    "qk_layernorm": None,
    "qk_layernorm_scope": lambda p: {"qk_layernorm_scope": "projection" if p.qk_layernorm_scope == "head" else "head"},
    "qk_l2_norm": None,
    "add_bias_linear": None,
    "add_qkv_bias": lambda p: {"add_qkv_bias": not p.add_qkv_bias},
    "attention_output_bias": lambda p: {"attention_output_bias": not _has_bias(p, "attention_output_bias")},
    "mlp_bias": lambda p: {"mlp_bias": not _has_bias(p, "mlp_bias")},
    "lm_head_bias": None,
    "gated_linear_unit": None,
    "activation_func": lambda p: {"activation_func": F.silu if p.activation_func is F.gelu else F.gelu},
    "activation_func_clamp_value": 0.1,
    "glu_linear_offset": 0.5,
    "softmax_scale": 0.2,
    "softmax_type": lambda p: {"softmax_type": "off-by-one" if p.softmax_type == "vanilla" else "vanilla"},
    "attention_output_gate": None,
    "apply_query_key_layer_scaling": None,  # no change in most models, but scores are capped after it
    "embedding_multiplier": 3.0,
    "logits_multiplier": 0.5,
    "residual_multiplier": 0.5,
    "final_logit_softcapping": 0.5,
    "attn_logit_softcapping": 0.1,
    # Positions
    "position_embedding_type": lambda p: {"position_embedding_type": _another(p, "position_embedding_type")},
    "rotary_base": 500.0,
    "rotary_percent": lambda p: {"rotary_percent": 0.5 if p.rotary_percent == 1.0 else 1.0},
    "rotary_interleaved": None,
    "rope_parameters": {"rope_type": "linear", "factor": 4.0},
    "window_rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
    "seq_len_interpolation_factor": 4.0,
    "no_rope_freq": lambda p: {"no_rope_freq": _flipped(p, p.no_rope_freq)},
    "mrope_section": [2, 3, 3],
    "rope_type": lambda p: {"rope_type": "rope" if p.rope_type == "yarn" else "yarn"},
    "rotary_scaling_factor": 2.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4.0,
    "beta_slow": 0.25,
    "mscale": 0.5,
    "mscale_all_dim": 0.5,
    # Windows
    "window_size": lambda p: {"window_size": (6, 0)},
    "window_attn_skip_freq": lambda p: {"window_attn_skip_freq": _flipped(p, p.window_attn_skip_freq)},
    "window_attention": lambda p: {"window_attention": {**(p.window_attention or {}), "kv_channels": 32}},
    "attention_chunk_size": 5,
    # Latent attention
    "multi_latent_attention": None,
    "q_lora_rank": lambda p: {"q_lora_rank": 16},
    "kv_lora_rank": 16,
    "qk_head_dim": 24,
    "qk_pos_emb_head_dim": 16,
    "v_head_dim": 24,
    # Sparse attention
    "experimental_attention_variant": lambda p: {"experimental_attention_variant": None},
    "dsa_indexer_n_heads": 2,
    "dsa_indexer_head_dim": 24,
    "dsa_indexer_topk": 3,
    "dsa_indexer_topk_freq": 2,
    "dsa_indexer_skip_topk_offset": 2,
    "dsa_indexer_rope_interleaved": None,
    "dsa_indexer_scoring_relu": None,
    "dsa_indexer_k_norm_epsilon": 1e-2,
    # Layers without attention
    "linear_attention_freq": lambda p: {"linear_attention_freq": _flipped(p, p.linear_attention_freq)},
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": lambda p: {"linear_num_key_heads": p.linear_num_key_heads // 2},
    "linear_num_value_heads": lambda p: {"linear_num_value_heads": p.linear_num_value_heads * 2},
    "mamba_state_dim": 24,
    "mamba_head_dim": 24,
    "mamba_num_groups": lambda p: {"mamba_num_groups": 1 if p.mamba_num_groups > 1 else 2},
    "mamba_num_heads": lambda p: {"mamba_num_heads": (p.mamba_num_heads or 4) * 2},
    "mamba_dt_min": 0.7,
    "mamba_rms_norm": None,
    "mamba_norm_before_gate": None,
    "hybrid_layer_pattern": lambda p: {"hybrid_layer_pattern": p.hybrid_layer_pattern[::-1]},
    "conv_kernel_size": 2,
    "conv_bias": None,
    # Experts
    "num_moe_experts": lambda p: {"num_moe_experts": 8 if p.num_moe_experts == 4 else 4},
    "moe_layer_freq": lambda p: {"moe_layer_freq": _flipped(p, p.moe_layer_freq)},
    "moe_ffn_hidden_size": 40,
    "moe_router_topk": lambda p: {"moe_router_topk": 3 if p.moe_router_topk == 2 else 2},
    "moe_router_pre_softmax": None,
    "moe_router_renormalize": lambda p: {"moe_router_renormalize": p.moe_router_renormalize is False},
    "moe_router_epsilon": 0.5,
    "moe_router_score_function": lambda p: {"moe_router_score_function": _another(p, "moe_router_score_function")},
    "moe_router_enable_expert_bias": None,
    "moe_router_softmax_expert_bias": None,
    "moe_router_topk_scaling_factor": 1.7,
    "moe_router_num_groups": lambda p: {
        "moe_router_num_groups": 2 if p.moe_router_num_groups != 2 else 4,
        "moe_router_group_topk": 1,
    },
    "moe_router_group_topk": lambda p: {
        "moe_router_num_groups": p.moe_router_num_groups or 2,
        "moe_router_group_topk": 1,
    },
    "moe_router_group_score": lambda p: {"moe_router_group_score": _another(p, "moe_router_group_score")},
    "moe_router_topk_limited_devices": 1,
    "moe_router_load_balancing_type": "sinkhorn",
    "moe_router_force_load_balancing": None,
    "moe_router_force_biased": 2.0,
    "moe_input_jitter_eps": 0.5,
    "moe_expert_capacity_factor": 0.5,
    "moe_expert_rank_capacity_factor": 0.5,
    "moe_apply_probs_on_input": None,
    "moe_latent_size": 32,
    "moe_shared_expert_intermediate_size": lambda p: {"moe_shared_expert_intermediate_size": 80},
    "moe_shared_expert_gate": None,
    "moe_mlp_glu_interleave_size": 8,
    "moe_shared_expert_glu_interleave_size": 8,
    # Scalings by the width of the model
    "use_mup": lambda p: {"use_mup": True, "mup_base_hidden_size": 32},
    "mup_base_hidden_size": lambda p: {"use_mup": True, "mup_base_hidden_size": 16},
    "mup_width_mult": lambda p: {"use_mup": True, "mup_base_hidden_size": 16, "mup_width_mult": 2.0},
    "mup_embedding_mult": lambda p: {"use_mup": True, "mup_embedding_mult": 2.0},
    "mup_output_mult": lambda p: {"use_mup": True, "mup_output_mult": 2.0},
    "mup_base_head_dim": lambda p: {"use_mup": True, "mup_base_head_dim": 8},
    "mup_attn_scale_power": lambda p: {"use_mup": True, "mup_attn_scale_power": 0.5},
    # Prediction layers, which transformers does not compute
    "mtp_num_layers": lambda p: {"mtp_num_layers": 1, "mtp_hybrid_override_pattern": "*"},
    "mtp_use_repeated_layer": None,
    "mtp_hybrid_override_pattern": lambda p: {"mtp_num_layers": 1, "mtp_hybrid_override_pattern": "-"},
    # Single families' own
    "full_attention_k_eq_v": None,
    "num_kv_shared_layers": lambda p: {
        "num_kv_shared_layers": 1,
        "hidden_size_per_layer_input": 24,
        "vocab_size_per_layer_input": 100,
    },
    "use_double_wide_mlp": None,
    "hidden_size_per_layer_input": 24,
    "vocab_size_per_layer_input": 100,
    "mlp_size_rule": lambda p: {"mlp_size_rule": None},
    "rope_layer_qk_norm": None,
    "attention_temperature_tuning": None,
    "attention_floor_scale": 2.0,
    "attention_scale": 0.9,
    "value_multiplier": 0.3,
    "attention_in_multiplier": 0.6,
    "attention_out_multiplier": 0.6,
    "ssm_in_multiplier": 0.6,
    "ssm_out_multiplier": 0.6,
    "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9],
    "mlp_multipliers": [0.6, 0.7],
}
_CHOICES = {
    "position_embedding_type": ("rope", "none"),
    "moe_router_score_function": ("softmax", "sigmoid"),
    "moe_router_group_score": ("max", "top2_sum"),
}


def _another(provider: Any, name: str) -> str:
    return next(choice for choice in _CHOICES[name] if choice != getattr(provider, name))


def _has_bias(provider: Any, name: str) -> bool:
    value = getattr(provider, name)
    return bool(provider.add_bias_linear if value is None else value)


def _flipped(provider: Any, freq: Any) -> list[int]:
    """Another choice of layers: the first two, or if these are chosen, the others."""
    layers = [1, 1, *[0] * (provider.num_layers - 2)]
    return [1 - layer for layer in layers] if freq == layers else layers


def _with_layers(provider: Any, num_layers: int) -> dict[str, Any]:
    changes: dict[str, Any] = {"num_layers": num_layers}
    for name in ("moe_layer_freq", "linear_attention_freq", "window_attn_skip_freq", "no_rope_freq"):
        if isinstance(getattr(provider, name), list):
            changes[name] = getattr(provider, name)[:num_layers]
    if hasattr(provider, "hybrid_layer_pattern"):
        changes["hybrid_layer_pattern"] = provider.hybrid_layer_pattern[:num_layers]
    return changes


def change(provider: Any, name: str) -> None:
    """Gives a provider's field another value."""
    new = OTHER[name]
    values = new(provider) if callable(new) else {name: not getattr(provider, name) if new is None else new}
    for field, value in values.items():
        setattr(provider, field, value)


def bridge_of(tiny: TinyModel) -> AutoBridge:
    return AutoBridge.from_hf_config(tiny.hf_config())


def changed_provider(bridge: AutoBridge, name: str) -> Any | None:
    """The provider with a field changed, finalised; `None` if there is no such model."""
    provider: Any = bridge.to_megatron_provider(load_weights=False)
    provider.finalize()
    try:
        change(provider, name)
        provider.finalize()
    except (BridgeError, TypeError, AttributeError):  # a change that only fits other families
        return None
    return provider


def provider_class(tiny: TinyModel) -> type[Any]:
    return type(bridge_of(tiny).to_megatron_provider(load_weights=False))


def fields_of(tiny: TinyModel) -> list[str]:
    return [field.name for field in dataclasses.fields(provider_class(tiny)) if is_computing(field.name)]


def logits_of(provider: Any, weights: Any = None) -> tuple[list[Any], torch.Tensor] | None:
    """A model, randomised if it is given no weights, and its logits for `TOKENS`.

    `None` if megatron-core cannot compute such a model.
    """
    try:
        model = provider.provide_distributed_model(wrap_with_ddp=False)
        if weights is None:
            randomize(model[0], 0)
        else:
            model[0].load_state_dict(weights)
        return model, full_logits(model, TOKENS)
    except (RuntimeError, AssertionError, TypeError, AttributeError, ValueError, ImportError):
        return None


def difference_of_export(
    bridge: AutoBridge, model: list[Any], expected: torch.Tensor, folder: Path
) -> tuple[float, float]:
    """How far the logits of transformers for `TOKENS`, with the exported model, are from these, and may be.

    Among thousands of models, the usual number of inputs is too small for some to show how much they round.
    """
    bridge.save_hf_pretrained(model, folder)
    assert bridge.hf_pretrained.config.architectures is not None
    hf_class = getattr(transformers, bridge.hf_pretrained.config.architectures[0], transformers.AutoModelForCausalLM)
    hf_model, info = hf_class.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    is_used = [name for name in info["unexpected_keys"] if not PREDICTION.search(name)]
    assert not (info["missing_keys"] or info["mismatched_keys"] or is_used), (info["missing_keys"], is_used)
    for num_inputs in (NUM_INPUTS, 16 * NUM_INPUTS):
        exported, tolerance = reference(hf_model.eval(), TOKENS, num_inputs=num_inputs)
        difference = (exported - expected).abs().max().item()
        if difference <= tolerance:
            break
    return difference, tolerance


def check_logits(tiny: TinyModel, names: Sequence[str], folder: Path) -> None:
    """With each of the fields changed, the export gives the model's logits."""
    problems = []
    for name in names:
        bridge = bridge_of(tiny)
        provider = changed_provider(bridge, name)
        found = None if provider is None else logits_of(provider)
        if found is None:
            continue
        model, expected = found
        try:  # whatever goes wrong is shown with the field's name
            difference, tolerance = difference_of_export(bridge, model, expected, folder / name)
        except PlanError as error:
            assert "no mapping writes it" in str(error)  # the weights of such a layer have no HF names
            continue
        except Exception as error:
            problems.append(f"{name}: {type(error).__name__}: {error!s:.500}")
            continue
        if not difference <= tolerance:
            problems.append(f"{name}: {difference}, expected up to {tolerance}")
        shutil.rmtree(folder / name)
    assert not problems


def accepted(tiny: TinyModel, names: Sequence[str]) -> list[str]:
    """Those of the fields whose change an export can state. Any other change is refused by the field's name."""
    can_be_stated = []
    for name in names:
        bridge = bridge_of(tiny)
        provider = changed_provider(bridge, name)
        if provider is None:
            continue
        try:
            exported_config(bridge._model_bridge, bridge.hf_pretrained, provider)
        except UnsupportedConfigError as error:
            assert name in str(error)
            continue
        can_be_stated.append(name)
    return can_be_stated


def test_every_field_of_a_provider_is_classified() -> None:
    names = {field.name for tiny in TINY_MODELS.values() for field in dataclasses.fields(provider_class(tiny))}
    assert {name for name in names if is_computing(name)} == OTHER.keys()
    assert names >= not_computing._NAMES
    assert all(any(name.startswith(prefix) for name in names) for prefix in not_computing._PREFIXES)


@pytest.mark.parametrize("every", [30, pytest.param(1, marks=pytest.mark.proof)], ids=["some", "all"])
@pytest.mark.parametrize("name", FIRST_VARIANTS)
def test_an_export_gives_the_logits_of_the_model_as_it_was_changed(name: str, every: int, tmp_path: Path) -> None:
    tiny, first = TINY_MODELS[name], FIRST_VARIANTS.index(name) % every
    check_logits(tiny, accepted(tiny, fields_of(tiny)[first::every]), tmp_path)


# With other weights, weights in another form, or in low precision, logits cannot be compared.
NOT_FLIPPED = (
    "bf16", "fp16", "enable_autocast", "perform_initialization", "init_model_with_meta_device",
    "use_cpu_initialization", "linear_out_norm_zero_centered",
)  # fmt: skip


@pytest.mark.proof
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3-moe", "deepseek-v3", "qwen3-next", "nemotron-h"])
def test_fields_that_compute_nothing(name: str) -> None:
    """Switches and numbers among them, where megatron-core lets them be changed on this machine."""
    bridge = bridge_of(TINY_MODELS[name])
    unchanged: Any = bridge.to_megatron_provider(load_weights=False)
    found = logits_of(unchanged)
    assert found is not None
    num_changed = 0
    for field in dataclasses.fields(unchanged):
        value = getattr(unchanged, field.name)
        if is_computing(field.name) or not isinstance(value, bool | float) or field.name in NOT_FLIPPED:
            continue
        provider: Any = bridge.to_megatron_provider(load_weights=False)
        setattr(provider, field.name, not value if isinstance(value, bool) else value / 2 + 0.1)
        changed = logits_of(provider, found[0][0].state_dict())
        if changed is not None:
            num_changed += 1
            torch.testing.assert_close(changed[1], found[1], rtol=0, atol=2e-5, msg=field.name)
    assert num_changed > 50
