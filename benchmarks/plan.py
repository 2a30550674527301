"""Time and memory of plans for models too large for the disk, from synthetic headers.

    PYTHONPATH=. uv run python benchmarks/plan.py deepseek-v3      # 671 B parameters, 61 layers of 256 experts
    PYTHONPATH=. uv run python benchmarks/plan.py kimi-k2          # 1 T parameters, 61 layers of 384 experts

Reading the headers, building the model on the meta device, and matching the two are timed.
"""

import argparse
import shutil
import time
from pathlib import Path

import transformers

from benchmarks.measure import Measure
from benchmarks.synthetic import write_headers
from megatron.bridge import AutoBridge

DEEPSEEK_V3 = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "dtype": "bfloat16",
    "num_nextn_predict_layers": 0,
}
MODELS = {
    "deepseek-v3": DEEPSEEK_V3,
    "kimi-k2": {
        **DEEPSEEK_V3,
        "vocab_size": 163840,
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "n_routed_experts": 384,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.827,
    },
}


def main() -> None:
    """Writes the headers, then makes the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/megatron-bridge-benchmark-plan"))
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    config = transformers.DeepseekV3Config(**MODELS[args.model], architectures=["DeepseekV3ForCausalLM"])
    write_headers(config, args.folder)
    AutoBridge.from_hf_config(config).to_megatron_provider(load_weights=False)  # imports megatron-core
    from megatron.bridge.models.conversion import meta_model
    from megatron.bridge.models.conversion.plan import build_plan

    meta_model.ensure_unsharded()
    with Measure() as measure:
        start = time.perf_counter()
        bridge = AutoBridge.from_hf_pretrained(args.folder)
        infos = bridge.hf_pretrained.state.infos
        headers = time.perf_counter()
        parameters, provider, _ = meta_model.meta_placement(bridge.to_megatron_provider(load_weights=False))
        built = time.perf_counter()
        plan = build_plan(parameters, bridge._model_bridge.registry(), provider, infos, model_name=args.model)
        planned = time.perf_counter()
    num_billions = plan.num_elements / 1e9
    print(f"{args.model}: {num_billions:.0f} B parameters, {len(infos)} HF tensors, {len(plan)} Megatron weights")
    print(f"  headers {headers - start:.1f} s, meta model {built - headers:.1f} s, plan {planned - built:.1f} s")
    print(f"  together {measure.seconds:.1f} s, {measure.peak_bytes / 1e9:.2f} GB more than after start-up")
    shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
