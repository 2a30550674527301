"""Generation against transformers: the same greedy tokens, and at each step the logits of a full forward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.inference.utils import InferenceMode

from megatron.bridge import AutoBridge
from megatron.bridge.errors import BridgeError, ParallelLayoutError
from megatron.bridge.inference import SamplingParams, generate_tokens
from megatron.bridge.inference.cached_forward import CachedForward
from megatron.bridge.models.gpt_provider import GPTModelProvider
from tests.ranks import run_ranks
from tests.rounding import ROUNDING, reference
from tests.tiny_models import TINY_MODELS

LAYOUTS = {
    "tp1": {},
    "tp2": {"tp": 2},
    "tp2-sequence-parallel": {"tp": 2, "sequence_parallel": True},
    "pp2": {"pp": 2},
    "tp2-pp2": {"tp": 2, "pp": 2},
}
# Name -> prompt length and new tokens. Sequences grow past the window of 8, and past the length at which a scaling
# changes its frequencies (dynamic: 24, longrope: 32).
LENGTHS = {
    "llama": (10, 16),
    "llama-odd-vocabulary": (9, 12),
    "llama-odd-vocabulary-tied": (9, 12),
    "llama-all-biases": (5, 8),
    "llama-linear-rope": (10, 16),
    "llama-dynamic-rope": (19, 12),
    "llama-yarn-rope": (10, 16),
    "llama-llama3-rope": (10, 16),
    "llama-longrope-long": (27, 12),
    "qwen2": (10, 16),
    "qwen2-window-on-some-layers": (5, 16),
    "qwen3": (10, 16),
    "qwen3-window-on-some-layers": (12, 12),
    "qwen3-yarn-rope": (10, 16),
    "mistral-window": (6, 16),
    "ministral3": (12, 12),
    "phi3-partial-longrope-long": (27, 12),
    "phi": (10, 8),
    "gemma2": (6, 12),
    "gemma3": (6, 12),
    "gemma4-keys-are-values": (6, 12),
    "gemma4-moe": (6, 12),
    "gemma4-e2b": (6, 12),
    "olmo3-yarn-rope": (6, 12),
    "exaone4": (6, 12),
    "hunyuan-dense": (10, 8),
    "cohere2": (6, 12),
    "stablelm-head-norms": (10, 8),
    "apertus": (10, 8),
    "qwen2-moe": (10, 8),
    "qwen3-next": (5, 6),
    "deepseek-v3": (10, 8),
    "moonlight": (10, 8),
    "deepseek-v3.2": (10, 8),
    "glm-moe-dsa-shared-indices": (6, 12),
    "gpt-oss": (6, 12),
    "mimo-v2-flash": (6, 12),
    "llama4": (6, 12),
    "exaone-moe": (6, 12),
    "nemotron-h": (6, 8),
    "nemotron-3": (6, 8),
    "mamba2": (6, 8),
    "bamba": (6, 8),
    "falcon-h1": (6, 8),
    "hunyuan-moe": (10, 8),
    "lfm2": (10, 8),
    "lfm2-tied-biases": (2, 8),  # shorter than the convolution
    "lfm2-moe": (10, 8),
}
# transformers with a cache leaves old keys at the frequencies of their time.
LENGTH_DEPENDENT = ("llama-dynamic-rope", "llama-longrope-long", "phi3-partial-longrope-long")


def build(folder: Path, tp: int = 1, pp: int = 1, sequence_parallel: bool = False, **overrides: Any) -> list[Any]:
    provider = AutoBridge.from_hf_pretrained(folder).to_megatron_provider()
    provider.tensor_model_parallel_size = tp
    provider.pipeline_model_parallel_size = pp
    provider.sequence_parallel = sequence_parallel
    for name, value in overrides.items():
        setattr(provider, name, value)
    provider.finalize()
    return provider.provide_distributed_model(wrap_with_ddp=False)


def prompt_of(length: int, vocab_size: int = 128) -> list[int]:
    return torch.randint(0, vocab_size, (length,), generator=torch.Generator().manual_seed(3)).tolist()


def step_logits(model: list[Any], prompt: list[int], tokens: list[int]) -> torch.Tensor | None:
    """The logits before each of the tokens, `[steps, V]`, from the KV cache (on the last pipeline stage)."""
    forward = CachedForward(model, len(prompt) + len(tokens))
    logits = [forward([prompt]), *(forward([[token]]) for token in tokens[:-1])]
    return None if logits[0] is None else torch.cat(logits)


def decode(folder: Path, layout: dict[str, Any], prompt: list[int], num_new: int) -> tuple[list[int], Any]:
    model = build(folder, **layout)
    tokens = list(generate_tokens(model, prompt, SamplingParams(max_new_tokens=num_new)))
    return tokens, step_logits(model, prompt, tokens)


def on_ranks(fn: Any, layout: dict[str, Any], *args: Any) -> list[Any]:
    sizes = {name: layout.get(name, 1) for name in ("tp", "pp")}
    if sizes == {"tp": 1, "pp": 1}:
        return [fn(*args)]
    return run_ranks(fn, sizes["tp"] * sizes["pp"], *args, **sizes)


CASES = [
    *((name, "tp1") for name in LENGTHS),
    *(
        (name, layout)
        for name in (
            "llama-odd-vocabulary-tied",
            "llama-dynamic-rope",
            "llama-longrope-long",
            "qwen2-window-on-some-layers",
        )
        for layout in ("tp2", "pp2")
    ),
    ("qwen3", "tp2"),
    ("olmo3-yarn-rope", "tp2-sequence-parallel"),
    ("hunyuan-dense", "pp2"),
    ("mimo-v2-flash", "tp2-pp2"),
    ("gemma4-e2b", "tp2-sequence-parallel"),
    ("gemma4-e2b", "tp2-pp2"),
    ("llama-odd-vocabulary", "pp2"),
    ("mistral-window", "tp2-sequence-parallel"),
    ("llama-dynamic-rope", "tp2-sequence-parallel"),
    ("llama-longrope-long", "tp2-pp2"),
    ("lfm2", "tp2-sequence-parallel"),
    ("lfm2-tied-biases", "pp2"),
]
# What others of these show as well.
PROOFS = [
    ("llama-dynamic-rope", "tp2"),
    ("llama-dynamic-rope", "pp2"),
    ("llama-longrope-long", "tp2"),
    ("llama-longrope-long", "tp2-pp2"),
    ("qwen2-window-on-some-layers", "pp2"),
    ("mimo-v2-flash", "tp2-pp2"),
    ("gemma4-e2b", "tp2-sequence-parallel"),
]


@pytest.mark.parametrize(
    ("name", "layout"), [pytest.param(*case, marks=[pytest.mark.proof] if case in PROOFS else []) for case in CASES]
)
def test_greedy_tokens_and_logits_are_those_of_transformers(name, layout, tmp_path):
    hf_model = TINY_MODELS[name].save(tmp_path)
    length, num_new = LENGTHS[name]
    prompt = prompt_of(length)
    expected, logits = hf_greedy(hf_model, prompt, num_new, use_cache=False)
    _, tolerance = reference(hf_model, torch.tensor([prompt + expected]))
    results = on_ranks(decode, LAYOUTS[layout], tmp_path, LAYOUTS[layout], prompt, num_new)
    assert [tokens for tokens, _ in results] == [expected] * len(results)
    computed = [computed for _, computed in results if computed is not None]
    assert len(computed) == len(results) // LAYOUTS[layout].get("pp", 1)
    for ours in computed:
        assert ours.shape == logits.shape
        assert (ours - logits).abs().max() <= tolerance
    if name not in LENGTH_DEPENDENT:
        assert hf_greedy(hf_model, prompt, num_new, use_cache=True)[0] == expected


def hf_greedy(hf_model: Any, prompt: list[int], num_new: int, use_cache: bool) -> tuple[list[int], torch.Tensor]:
    output = hf_model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        use_cache=use_cache,
        max_new_tokens=num_new,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.sequences[0, len(prompt) :].tolist(), torch.cat(output.logits)


@pytest.mark.parametrize("name", LENGTH_DEPENDENT)
def test_lengths_pass_the_change_of_frequencies(name):
    """The cases above would prove nothing about it if the change came earlier or later."""
    rope = TINY_MODELS[name].hf_config()
    threshold = rope.rope_parameters.get("original_max_position_embeddings") or rope.max_position_embeddings
    length, num_new = LENGTHS[name]
    assert length < threshold < length + num_new - 1


def sampled(folder: Path, layout: dict[str, Any], params: SamplingParams) -> list[int]:
    return list(generate_tokens(build(folder, **layout), prompt_of(7), params))


@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_sampled_tokens_are_the_same_on_every_rank_and_layout(layout, tmp_path):
    TINY_MODELS["llama-odd-vocabulary"].save(tmp_path)
    params = SamplingParams(max_new_tokens=20, temperature=1.5, top_k=50, top_p=0.95, seed=11)
    [alone] = on_ranks(sampled, {}, tmp_path, {}, params)
    assert len(set(alone)) > 10
    assert on_ranks(sampled, LAYOUTS[layout], tmp_path, LAYOUTS[layout], params) == [alone, alone]
    [other_seed] = on_ranks(sampled, {}, tmp_path, {}, SamplingParams(20, 1.5, 50, 0.95, seed=12))
    assert other_seed != alone


def test_padding_of_the_vocabulary_is_never_generated(tmp_path):
    """Padding rows with larger weights than those of any token."""
    TINY_MODELS["llama-odd-vocabulary"].save(tmp_path)
    model = build(tmp_path, make_vocab_size_divisible_by=128)
    with torch.no_grad():
        model[0].output_layer.weight[131:] = 100 * model[0].output_layer.weight[:131].abs().max()
    assert model[0].output_layer.weight.shape[0] > 131
    params = SamplingParams(max_new_tokens=30, temperature=3.0)
    assert max(generate_tokens(model, prompt_of(5), params)) < 131
    assert max(generate_tokens(model, [5], params, vocab_size=40)) < 40


def test_generation_ends_with_an_end_token(tmp_path):
    TINY_MODELS["llama"].save(tmp_path)
    model = build(tmp_path)
    tokens = list(generate_tokens(model, prompt_of(10), SamplingParams(max_new_tokens=16)))
    end = tokens[6]
    first = tokens.index(end)
    assert first > 0
    assert (
        list(generate_tokens(model, prompt_of(10), SamplingParams(max_new_tokens=16), (end, 127)))
        == tokens[: first + 1]
    )


def flags_while_generating(folder: Path) -> None:
    model = build(folder, tp=2, sequence_parallel=True)
    model[0].decoder.layers[1].eval()
    before = flags(model)
    assert {True, False} == {training for training, *_ in before.values()}
    assert any(sequence_parallel for _, sequence_parallel, _ in before.values())
    tokens = generate_tokens(model, prompt_of(6), SamplingParams(max_new_tokens=5))
    for _ in range(3):
        next(tokens)
        assert flags(model) == before
        assert model[0].config.sequence_parallel
        assert torch.is_grad_enabled()
        assert not InferenceMode.is_active()


def flags(model: list[Any]) -> dict[str, tuple[bool, Any, Any]]:
    return {
        name: (
            module.training,
            getattr(module, "sequence_parallel", None),
            getattr(module, "reduce_scatter_embeddings", None),
        )
        for name, module in model[0].named_modules()
    }


def test_the_model_is_as_before_between_the_tokens(tmp_path):
    TINY_MODELS["llama"].save(tmp_path)
    run_ranks(flags_while_generating, 2, tmp_path, tp=2)


def test_dropout_is_off(tmp_path):
    hf_model = TINY_MODELS["llama"].save(tmp_path)
    model = build(tmp_path, hidden_dropout=0.5, attention_dropout=0.5)
    model[0].train()
    expected, _ = hf_greedy(hf_model, prompt_of(10), 8, use_cache=True)
    assert list(generate_tokens(model, prompt_of(10), SamplingParams(max_new_tokens=8))) == expected


def bfloat16_logits(folder: Path, layout: dict[str, Any], prompt: list[int], tokens: list[int]) -> tuple[Any, str]:
    model = build(folder, **layout, bf16=True, params_dtype=torch.bfloat16, pipeline_dtype=torch.bfloat16)
    return step_logits(model, prompt, tokens), type(model[0]).__name__


@pytest.mark.parametrize("layout", ["tp1", "pp2"])
def test_a_wrapped_half_precision_model(layout, tmp_path):
    hf_model = TINY_MODELS["llama"].save(tmp_path, torch.bfloat16)
    prompt, tokens = prompt_of(10), prompt_of(6)
    expected, tolerance = reference(hf_model, torch.tensor([prompt + tokens]))
    for ours, wrapper in on_ranks(bfloat16_logits, LAYOUTS[layout], tmp_path, LAYOUTS[layout], prompt, tokens):
        assert wrapper == "Float16Module"
        if ours is not None:
            assert ours.dtype == torch.float32
            assert (ours - expected[0, len(prompt) - 1 : -1]).abs().max() <= tolerance


def test_learned_positions():
    provider = GPTModelProvider(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        ffn_hidden_size=48,
        vocab_size=96,
        seq_length=32,
        position_embedding_type="learned_absolute",
    )
    provider.finalize()
    model = provider.provide_distributed_model(wrap_with_ddp=False)
    ours, whole = with_and_without_cache(model)
    assert whole.abs().max() > 0.05
    assert (ours - whole).abs().max() <= ROUNDING


def with_and_without_cache(model: list[Any]) -> tuple[torch.Tensor | None, torch.Tensor]:
    from megatron.bridge.inference.full_logits import full_logits

    prompt, tokens = prompt_of(10, 96), prompt_of(6, 96)
    whole = full_logits(model, torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1]
    return step_logits(model, prompt, tokens), whole


def moe_logits(layout: dict[str, int], sequence_parallel: bool) -> tuple[torch.Tensor, torch.Tensor]:
    provider = GPTModelProvider(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_query_groups=2,
        ffn_hidden_size=48,
        moe_ffn_hidden_size=48,
        num_moe_experts=4,
        moe_router_topk=2,
        moe_token_dispatcher_type="alltoall",
        gated_linear_unit=True,
        add_bias_linear=False,
        normalization="RMSNorm",
        vocab_size=96,
        seq_length=64,
        tensor_model_parallel_size=layout.get("tp", 1),
        expert_model_parallel_size=layout.get("ep", 1),
        sequence_parallel=sequence_parallel,
    )
    provider.finalize()
    model = provider.provide_distributed_model(wrap_with_ddp=False)
    return with_and_without_cache(model)


@pytest.mark.parametrize(
    ("num_ranks", "layout", "sequence_parallel"),
    [(1, {}, False), (2, {"tp": 2}, True), (2, {"ep": 2}, False), (2, {"tp": 2, "ep": 2, "etp": 1}, True)],
)
def test_mixture_of_experts_with_a_cache_is_as_without(num_ranks, layout, sequence_parallel):
    for ours, whole in run_ranks(moe_logits, num_ranks, layout, sequence_parallel, **layout):
        assert whole.abs().max() > 0.05
        assert (ours - whole).abs().max() <= ROUNDING


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("llama")
    TINY_MODELS["llama"].save(folder)
    return build(folder)


@pytest.mark.parametrize(
    ("prompt", "num_new", "message"),
    [
        ([], 4, "prompt has no tokens"),
        ([5, 128, -1], 4, r"\[128, -1\] are outside of the model's vocabulary of 128"),
        ([5] * 250, 7, "250 prompt tokens and 7 new ones do not fit into the model's 256 positions"),
    ],
)
def test_bad_prompts_are_refused_before_generation(llama, prompt, num_new, message):
    with pytest.raises(BridgeError, match=message):
        generate_tokens(llama, prompt, SamplingParams(max_new_tokens=num_new))


def test_all_positions_can_be_used(llama):
    assert len(list(generate_tokens(llama, [5] * 253, SamplingParams(max_new_tokens=3)))) == 3


def test_scaled_rope_allows_the_extended_length(tmp_path):
    TINY_MODELS["llama-dynamic-rope"].save(tmp_path)  # 24 positions, factor 2
    model = build(tmp_path)
    assert len(list(generate_tokens(model, [5] * 44, SamplingParams(max_new_tokens=4)))) == 4
    with pytest.raises(BridgeError, match="48 positions"):
        generate_tokens(model, [5] * 44, SamplingParams(max_new_tokens=5))


def test_virtual_pipeline_stages_are_refused(llama):
    with pytest.raises(ParallelLayoutError, match=r"2 chunks per rank .* virtual_pipeline_model_parallel_size=None"):
        generate_tokens([*llama, *llama], [5], SamplingParams())


def test_context_parallelism_is_refused(llama, monkeypatch):
    monkeypatch.setattr(llama[0].config, "context_parallel_size", 2)
    with pytest.raises(ParallelLayoutError, match="context_parallel_size is 2"):
        generate_tokens(llama, [5], SamplingParams())
