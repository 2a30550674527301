"""Provider fields that do not change what a model computes, so that no exported config has to state them.

Every other field is taken for one that does: a field that a later megatron-core adds is never overlooked.
"""

# Why fields change no logits, or only their rounding -> the fields.
_BY_REASON: dict[str, tuple[str, ...]] = {
    "how the work is shared among ranks": (
        "tensor_model_parallel_size", "tensor_parallel_num_weight_shards", "gtp_weight_remat_size",
        "pipeline_model_parallel_size", "pipeline_model_parallel_comm_backend", "virtual_pipeline_model_parallel_size",
        "sequence_parallel", "context_parallel_size", "hierarchical_context_parallel_sizes", "hybrid_context_parallel",
        "max_seqlen_per_dp_cp_rank", "expert_model_parallel_size", "expert_tensor_parallel_size",
        "expert_tensor_parallel_num_weight_shards", "expert_gtp_weight_remat_size",
        "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage",
        "pipeline_model_parallel_layout", "microbatch_group_size_per_vp_stage",
        "account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split", "mtp_standalone",
        "pad_query_groups", "unpadded_query_groups", "make_vocab_size_divisible_by", "parallel_output",
        "scatter_embedding_sequence_parallel", "variable_seq_lengths", "cp_comm_type", "symmetric_ar_type",
    ),
    "how weights and optimizer states begin, are named or stored": (
        "perform_initialization", "use_cpu_initialization", "init_model_with_meta_device", "init_method", "seed",
        "output_layer_init_method", "init_method_std", "embedding_init_method", "embedding_init_method_std",
        "heterogeneous_block_specs", "hetereogenous_dist_checkpoint", "linear_out_norm_zero_centered",
        "moe_single_grouped_weight", "moe_single_grouped_bias", "use_te_rng_tracker",
    ),
    "precision, which the exported tensors state": (
        "fp16", "bf16", "params_dtype", "pipeline_dtype", "enable_autocast", "autocast_dtype", "first_last_layers_bf16",
        "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16", "quant_recipe", "fp32_residual_connection",
        "attention_softmax_in_fp32", "disable_bf16_reduced_precision_matmul",
        "norm_weight_in_fp32", "moe_router_dtype", "dsa_indexer_k_norm_fp32", "mamba_training_ssm_states_dtype",
        "deterministic_mode", "batch_invariant_mode", "dsa_indexer_rotate_activation",
    ),
    "training: losses, gradients, dropout and statistics": (
        "hidden_dropout", "attention_dropout", "embedding_dropout", "finalize_model_grads_func", "grad_scale_func",
        "moe_grad_scale_func", "mtp_grad_scale_func", "no_sync_func", "grad_sync_func", "param_sync_func",
        "mtp_loss_scaling_factor", "mtp_detach_heads", "calculate_per_token_loss", "fp16_lm_cross_entropy",
        "cross_entropy_loss_fusion", "cross_entropy_fusion_impl", "gradient_accumulation_fusion", "moe_aux_loss_coeff",
        "moe_z_loss_coeff", "moe_router_bias_update_rate", "moe_router_quantile_balancing_ema", "moe_per_layer_logging",
        "experimental_attention_variant_loss_scale_func", "dsa_indexer_loss_coeff", "dsa_indexer_use_sparse_loss",
        "qk_clip", "qk_clip_alpha", "qk_clip_threshold", "log_max_attention_logit", "moe_enable_routing_replay",
        "moe_token_dropping", "moe_token_drop_policy", "moe_pad_expert_input_to_capacity",
    ),
    "which kernels and backends compute, and when": (
        "transformer_impl", "transformer_layer_spec", "attention_backend", "flash_attention_version", "flash_decode",
        "bias_activation_fusion", "bias_dropout_fusion", "masked_softmax_fusion", "apply_rope_fusion",
        "fused_single_qkv_rope", "fused_residual_rmsnorm", "persist_layer_norm", "memory_efficient_layer_norm",
        "use_transformer_engine_op_fuser", "use_te_activation_func", "use_fused_weighted_squared_relu",
        "activation_func_fp8_input_store", "mla_down_proj_fusion", "cache_mla_latents", "dsa_kernel_backend",
        "moe_grouped_gemm", "moe_permute_fusion", "moe_router_fusion", "moe_enable_deepep",
        "moe_permute_fusion_into_hybridep", "use_grouped_gemm_for_shared_expert", "use_grouped_gemm_for_dense_mlp",
        "moe_shared_expert_overlap", "moe_router_padding_for_quantization",
        "moe_router_padding_for_fp8", "use_kitchen", "use_kitchen_attention",
        "kitchen_attention_backend", "use_mamba_mem_eff_path", "mamba_chunk_size", "mlp_chunks_for_prefill",
        "mlp_chunks_for_training", "clone_scatter_output_in_embedding", "disable_parameter_transpose_cache",
        "use_inference_optimized_layers", "moe_pad_experts_for_cuda_graph_inference", "nccl_all_reduce_for_prefill",
        "barrier_with_L1_time", "timers", "config_logger_dir", "test_mode", "external_cuda_graph", "enable_cuda_graph",
        "high_priority_a2a_comm_stream",
    ),
    "the class that the model is built as": ("model_class", "hybrid_layers", "is_hybrid_model"),
    "what is kept, recomputed, moved or sent when": (
        "recompute_granularity", "recompute_method", "recompute_num_layers", "recompute_modules",
        "distribute_saved_activations", "moe_layer_recompute", "num_microbatches_with_partial_activation_checkpoints",
        "offload_modules", "min_offloaded_tensor_size", "delta_offload_bytes_across_pp_ranks",
        "delay_offload_until_cuda_graph", "activation_offload_fraction", "delay_wgrad_compute",
        "overlap_moe_expert_parallel_comm", "overlap_dispatch_backward_with_experts_wgrad", "overlap_p2p_comm",
        "overlap_p2p_comm_warmup_flush", "ep_overlap_early_attn_memory_release", "batch_p2p_comm", "batch_p2p_sync",
        "use_ring_exchange_p2p", "deallocate_pipeline_outputs", "defer_embedding_wgrad_compute",
        "wgrad_deferral_limit", "tp_only_amax_red", "moe_token_dispatcher_type",
    ),
}  # fmt: skip
# The beginnings of names of which all fields are about kernels, precision or memory.
_PREFIXES = (
    "tp_comm_", "fp8", "fp4", "cuda_graph_", "inference_", "cpu_offloading", "_cpu_offloading", "moe_hybridep_",
    "moe_flex_dispatcher_", "moe_deepep_", "moe_ncclep_", "moe_paged_stash", "fine_grained_",
)  # fmt: skip
_NAMES = frozenset(name for names in _BY_REASON.values() for name in names)


def is_computing(name: str) -> bool:
    """Whether a provider's field may change what the model computes.

    Example: `is_computing("rotary_base"), is_computing("recompute_method")` is `(True, False)`.
    """
    return name not in _NAMES and not name.startswith(_PREFIXES)
