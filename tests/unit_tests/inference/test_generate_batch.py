"""Batches of prompts of different lengths: each gets the tokens that transformers gives it alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.bridge.errors import BridgeError
from megatron.bridge.inference import SamplingParams, generate_batch, generate_tokens
from megatron.bridge.inference.cached_forward import CachedForward, needs_equal_lengths
from megatron.bridge.models.transformer.generation_context import GenerationContext
from tests.ranks import run_ranks
from tests.rounding import reference
from tests.tiny_models import TINY_MODELS
from tests.unit_tests.inference.test_generate_tokens import build, hf_greedy

LENGTHS = (9, 4, 12, 4, 1)
NUM_NEW = 8
# Those of each kind of attention and state, and whether lengths can be mixed.
MODELS = {
    "llama": True,
    "llama-odd-vocabulary": True,
    "llama-dynamic-rope": False,
    "qwen3-window-on-some-layers": True,
    "mistral-window": True,
    "ministral3": False,
    "phi": True,
    "gemma2": True,
    "gemma3": True,
    "gemma4-e2b": True,
    "olmo3-yarn-rope": True,
    "hunyuan-dense": True,
    "qwen2-moe": True,
    "deepseek-v3": True,
    "gpt-oss": True,
    "mimo-v2-flash": True,
    "llama4": False,
    "lfm2": True,
    "mamba2": True,
    "nemotron-h": True,
    "bamba": True,
    "falcon-h1": True,
    "qwen3-next": True,
    "deepseek-v3.2": False,
}


def prompts_of(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]


def batch_on_rank(folder: Path, layout: dict[str, Any], prompts: list[list[int]]) -> list[list[int]]:
    return generate_batch(build(folder, **layout), prompts, SamplingParams(max_new_tokens=NUM_NEW))


@pytest.mark.parametrize(("name", "mixes_lengths"), MODELS.items())
def test_each_prompt_is_continued_as_if_it_were_alone(name, mixes_lengths, tmp_path):
    hf_model = TINY_MODELS[name].save(tmp_path)
    prompts = prompts_of(hf_model.config.vocab_size)
    model = build(tmp_path)
    assert needs_equal_lengths(model) is not mixes_lengths
    found = generate_batch(model, prompts, SamplingParams(max_new_tokens=NUM_NEW))
    greedy = [hf_greedy(hf_model, prompt, NUM_NEW, use_cache=False) for prompt in prompts]
    assert found == [tokens for tokens, _ in greedy]
    if not mixes_lengths:
        return
    forward = CachedForward(model, max(LENGTHS) + NUM_NEW, len(prompts))
    steps = [forward(prompts), *(forward([[tokens[step]] for tokens in found]) for step in range(NUM_NEW - 1))]
    tolerance = max(reference(hf_model, torch.tensor([prompts[i] + found[i]]))[1] for i in range(len(prompts)))
    logits = torch.stack([step for step in steps if step is not None], dim=1)
    assert (logits - torch.stack([expected for _, expected in greedy])).abs().max() <= tolerance


@pytest.mark.parametrize("name", ["llama", "deepseek-v3", "lfm2", "nemotron-h", "falcon-h1", "qwen3-next"])
def test_nothing_is_computed_twice(name, tmp_path):
    TINY_MODELS[name].save(tmp_path)
    model = build(tmp_path)
    sizes: list[int] = []
    model[0].embedding.register_forward_hook(lambda module, args, output: sizes.append(output.shape[:2].numel()))
    generate_batch(model, prompts_of(100), SamplingParams(max_new_tokens=4))
    assert sum(sizes) == sum(LENGTHS) + 3 * len(LENGTHS)


@pytest.mark.parametrize("layout", [{"tp": 2, "sequence_parallel": True}, {"pp": 2}])
def test_on_ranks(layout, tmp_path):
    hf_model = TINY_MODELS["llama-odd-vocabulary"].save(tmp_path)
    prompts = prompts_of(131)
    expected = [hf_greedy(hf_model, prompt, NUM_NEW, use_cache=True)[0] for prompt in prompts]
    sizes = {name: layout.get(name, 1) for name in ("tp", "pp")}
    assert run_ranks(batch_on_rank, 2, tmp_path, layout, prompts, **sizes) == [expected, expected]


def test_as_transformers_with_left_padding(tmp_path):
    hf_model = TINY_MODELS["llama"].save(tmp_path)
    prompts = prompts_of(128)
    longest = max(LENGTHS)
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in LENGTHS])
    options = {"max_new_tokens": NUM_NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = hf_model.generate(padded, attention_mask=mask, **options)[:, longest:].tolist()
    assert generate_batch(build(tmp_path), prompts, SamplingParams(max_new_tokens=NUM_NEW)) == expected


def test_ends_and_samples_are_each_prompt_s_own(tmp_path):
    TINY_MODELS["llama"].save(tmp_path)
    model, prompts = build(tmp_path), prompts_of(128)
    params = SamplingParams(max_new_tokens=12, temperature=0.5, seed=3)
    alone = [list(generate_tokens(model, prompt, params)) for prompt in prompts]
    ends = (alone[0][3],)
    alone = [list(generate_tokens(model, prompt, params, ends)) for prompt in prompts]
    assert len({len(tokens) for tokens in alone}) > 1
    assert generate_batch(model, prompts, params, ends) == alone


def test_bad_prompts_are_refused(tmp_path):
    TINY_MODELS["llama"].save(tmp_path)
    model = build(tmp_path)
    assert generate_batch(model, [], SamplingParams(max_new_tokens=4)) == []
    with pytest.raises(BridgeError, match="prompt has no tokens"):
        generate_batch(model, [[5], []], SamplingParams(max_new_tokens=4))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_that_of_megatron_core(interleaved):
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd

    context = GenerationContext(2, 8)
    angles, x = torch.randn(8, 1, 1, 6), torch.randn(3, 2, 4, 10)
    context.start_pass(0, 0, 2, slice(2, 5))
    expected = _apply_rotary_pos_emb_bshd(x, angles[2:5], rotary_interleaved=interleaved, mscale=1.5)
    assert torch.equal(context.rotate(x, angles, interleaved, 1.5), expected)
    context.start_pass(0, 0, 2, torch.tensor([4, 1]))
    found = context.rotate(x[:1], angles, interleaved, 1.5)
    for row, position in enumerate((4, 1)):
        one = _apply_rotary_pos_emb_bshd(
            x[:1, row : row + 1], angles[position : position + 1], rotary_interleaved=interleaved, mscale=1.5
        )
        assert torch.equal(found[:, row : row + 1], one)
