"""Text from tokens: whole characters, chat templates and end tokens."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, PreTrainedTokenizerFast

from megatron.bridge import AutoBridge
from megatron.bridge.errors import BridgeError
from megatron.bridge.inference import SamplingParams, eos_token_ids, generate_text, generate_tokens
from megatron.bridge.inference.text_stream import TextStream
from tests.tiny_models import TINY_MODELS, TinyModel
from tests.unit_tests.inference.tokenizers_of_kinds import KINDS, TEMPLATE

TOKENIZERS = {kind: make() for kind, make in KINDS.items()}
LETTERS = st.sampled_from("abcdefghi T.,?'"), st.sampled_from("éΩя日語한😀👩🏽‍🚀"), st.characters(codec="utf-8")
TEXT = st.text(st.one_of(*LETTERS), max_size=30)
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def byte_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return [token for text, token in tokenizer.get_vocab().items() if text.startswith("<0x")]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=TEXT.filter(lambda text: UNKNOWN not in text))
def test_pieces_are_whole_characters_and_give_the_text(kind, text):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer(text).input_ids
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert not any(UNKNOWN in piece for piece in pieces)
    assert "".join(pieces) == decode(tokenizer, ids)
    assert stream.end() == ""


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_tokens_give_what_the_tokenizer_decodes(kind, data):
    """Special tokens and broken characters included, but for byte fallback, where a broken byte undoes those before."""
    tokenizer = TOKENIZERS[kind]
    usable = sorted(set(range(len(tokenizer))) - set(byte_tokens(tokenizer)))
    ids = data.draw(st.lists(st.sampled_from(usable), max_size=20))
    stream = TextStream(tokenizer)
    pieces = [*(stream.add(token) for token in ids), stream.end()]
    assert "".join(pieces) == decode(tokenizer, ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(prompt=TEXT, text=TEXT)
def test_a_continuation_keeps_its_first_space(kind, prompt, text):
    tokenizer = TOKENIZERS[kind]
    prompt_ids = tokenizer(prompt).input_ids
    ids = tokenizer(text, add_special_tokens=False).input_ids
    stream = TextStream(tokenizer, prompt_ids)
    pieces = [*(stream.add(token) for token in ids), stream.end()]
    assert decode(tokenizer, prompt_ids) + "".join(pieces) == decode(tokenizer, prompt_ids + ids)


def test_text_comes_as_early_as_it_can():
    tokenizer = TOKENIZERS["byte level"]
    stream = TextStream(tokenizer)
    assert [stream.add(token) for token in tokenizer("T😀T").input_ids] == ["T", "", "", "", "😀", "T"]
    stream = TextStream(tokenizer)
    assert [stream.add(token) for token in tokenizer("T😀").input_ids[:-1]] == ["T", "", "", ""]
    assert stream.end() == UNKNOWN


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """A tiny model, the same of transformers, and a tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = KINDS[request.param]()
    tokenizer.chat_template = TEMPLATE
    tiny = TinyModel("llama", "LlamaForCausalLM", {"vocab_size": len(tokenizer)})
    hf_model = tiny.save(folder)
    with torch.no_grad():  # see test_any_tokens_give_what_the_tokenizer_decodes
        hf_model.lm_head.weight[byte_tokens(tokenizer)] = 0
    hf_model.save_pretrained(folder)
    return AutoBridge.from_hf_pretrained(folder).to_megatron_model(wrap_with_ddp=False), hf_model, tokenizer


def hf_new_ids(hf_model: Any, ids: list[int], num_new: int) -> list[int]:
    output = hf_model.generate(
        torch.tensor([ids]),
        do_sample=False,
        max_new_tokens=num_new,
        eos_token_id=None,
        pad_token_id=0,
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
    )
    return output[0, len(ids) :].tolist()


@pytest.mark.parametrize(("chat", "system"), [(None, None), (True, "Be brief."), (False, None)])
def test_text_is_that_of_transformers(loaded, chat, system):
    model, hf_model, tokenizer = loaded
    prompt = "The capital of France"
    if chat is False:
        ids = tokenizer(prompt).input_ids
    else:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    new_ids = hf_new_ids(hf_model, ids, 24)
    expected = decode(tokenizer, new_ids)
    if chat is False:
        expected = decode(tokenizer, ids + new_ids)[len(decode(tokenizer, ids)) :]
    pieces = list(generate_text(model, tokenizer, prompt, SamplingParams(24), chat, system, ()))
    assert len(expected) > 5
    assert "".join(pieces) == expected
    assert len(pieces) > 2
    assert all(pieces)


def test_a_continuation_that_begins_with_a_word_begins_with_its_space(loaded):
    model, _, tokenizer = loaded
    num_with_space = 0
    for prompt in ("The", "capital", "of", "France", "is", "Paris", "The capital", "Berlin of", "Germany is"):
        ids = tokenizer(prompt).input_ids
        tokens = list(generate_tokens(model, ids, SamplingParams(2)))
        expected = decode(tokenizer, ids + tokens)[len(decode(tokenizer, ids)) :]
        num_with_space += expected.startswith(" ")
        assert "".join(generate_text(model, tokenizer, prompt, SamplingParams(2), False, eos_token_ids=())) == expected
    assert num_with_space or not byte_tokens(tokenizer)  # only byte fallback drops the space of a first word


def test_text_ends_before_the_end_token(loaded):
    """Any token may be one, also one that has a text."""
    model, _, tokenizer = loaded
    params = SamplingParams(max_new_tokens=12)
    ids = tokenizer("The capital").input_ids
    tokens = list(generate_tokens(model, ids, params))
    end = tokens[5]
    expected = decode(tokenizer, ids + tokens[: tokens.index(end)])[len(decode(tokenizer, ids)) :]
    assert "".join(generate_text(model, tokenizer, "The capital", params, False, eos_token_ids=(end,))) == expected


def test_the_end_token_of_the_tokenizer_is_the_default(loaded):
    model, _, tokenizer = loaded
    params = SamplingParams(max_new_tokens=8)
    tokens = list(generate_tokens(model, tokenizer("The").input_ids, params))
    old = tokenizer.eos_token
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(tokens[0])
    try:
        assert list(generate_text(model, tokenizer, "The", params, chat=False)) == []
    finally:
        tokenizer.eos_token = old


@pytest.mark.parametrize(
    ("template", "chat", "system", "message"),
    [
        (None, True, None, "no chat template; pass chat=False"),
        (TEMPLATE, False, "Be brief.", "system message needs a chat template"),
        (None, None, "Be brief.", "system message needs a chat template"),
        ("{{ raise_exception('only users') }}", True, "Be brief.", "refuses system and user messages: only users"),
    ],
)
def test_chat_templates_that_cannot_serve(loaded, template, chat, system, message):
    model, _, tokenizer = loaded
    tokenizer.chat_template = template
    try:
        with pytest.raises(BridgeError, match=message):
            generate_text(model, tokenizer, "Hello", SamplingParams(), chat, system)
    finally:
        tokenizer.chat_template = TEMPLATE


def test_an_empty_prompt_without_a_first_token_is_refused(loaded):
    model, _, tokenizer = loaded
    if tokenizer("").input_ids:
        assert list(generate_text(model, tokenizer, "", SamplingParams(max_new_tokens=2), chat=False)) is not None
    else:
        with pytest.raises(BridgeError, match="prompt has no tokens"):
            generate_text(model, tokenizer, "", SamplingParams(), chat=False)


def saved(folder: Path, **config: Any) -> Any:
    TinyModel("llama", "LlamaForCausalLM", config).hf_config().save_pretrained(folder)
    return AutoBridge.from_hf_pretrained(folder).hf_pretrained


def test_end_tokens_are_of_the_generation_config_first(tmp_path):
    KINDS["byte level"]().save_pretrained(tmp_path)
    assert eos_token_ids(saved(tmp_path, eos_token_id=7)) == (7,)
    assert eos_token_ids(saved(tmp_path, eos_token_id=None)) == (1,)  # "</s>" of the tokenizer
    GenerationConfig(eos_token_id=[9, 11]).save_pretrained(tmp_path)
    assert eos_token_ids(saved(tmp_path, eos_token_id=7)) == (9, 11)


def test_models_without_an_end_token(tmp_path):
    assert eos_token_ids(saved(tmp_path, eos_token_id=None)) == ()
    assert eos_token_ids(SimpleNamespace(config=TINY_MODELS["llama"].hf_config())) == (2,)
