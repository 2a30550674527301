"""Generation with a Megatron model: tokens and text, one piece at a time."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from megatron.bridge.errors import BridgeError, CheckpointError
from megatron.bridge.inference.sampling import SamplingParams, sample
from megatron.bridge.inference.text_stream import TextStream

if TYPE_CHECKING:
    from megatron.core.transformer import MegatronModule
    from transformers import PreTrainedTokenizerBase

    from megatron.bridge.inference.cached_forward import CachedForward
    from megatron.bridge.models.hf_pretrained.causal_lm import PreTrainedCausalLM
    from megatron.bridge.models.transformer.decoder_config import DecoderConfig

# Scalings whose HF `max_position_embeddings` may be the length before scaling.
_LENGTH_BEFORE_SCALING = ("linear", "dynamic", "yarn")


def generate_tokens(
    model: "MegatronModule | Sequence[MegatronModule]",
    prompt_ids: Sequence[int],
    params: SamplingParams,
    eos_token_ids: Sequence[int] = (),
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Yields the ids of new tokens one by one, the end token included.

    Every rank of the model takes part (collective), with the same arguments, and yields the same tokens. Tensor and
    pipeline parallelism are allowed.

    Args:
        model: a chunk or the list of one chunk, bare or wrapped (DDP, Float16Module).
        prompt_ids: at least one token.
        eos_token_ids: generation ends after one of them.
        vocab_size: the number of real tokens; default: the provider's.

    Raises:
        BridgeError: an empty prompt, ids outside of the vocabulary, or more tokens than the model has positions.
        ParallelLayoutError: virtual pipeline stages, or context parallelism.
    """
    prompts = [[int(token) for token in prompt_ids]]
    forward = _checked_forward(model, prompts, params, vocab_size)
    return (token for [token] in _generate(forward, prompts, params, frozenset(eos_token_ids)) if token is not None)


def generate_batch(
    model: "MegatronModule | Sequence[MegatronModule]",
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    eos_token_ids: Sequence[int] = (),
    vocab_size: int | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, the end token included: what `generate_tokens` gives for the prompt alone.

    The prompts may differ in length. They are computed without padding, and then all sequences get their next token in
    one pass. Where a model cannot do that (`needs_equal_lengths`), the prompts of each length are a batch of their own.
    Arguments and errors are those of `generate_tokens`.
    """
    from megatron.bridge.inference.cached_forward import needs_equal_lengths

    groups: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(len(prompt) if needs_equal_lengths(model) else 0, []).append(index)
    new_tokens: list[list[int]] = [[] for _ in prompts]
    for group in groups.values():
        members = [[int(token) for token in prompts[index]] for index in group]
        forward = _checked_forward(model, members, params, vocab_size)
        for tokens in _generate(forward, members, params, frozenset(eos_token_ids)):
            for index, token in zip(group, tokens, strict=True):
                new_tokens[index].extend([] if token is None else [token])
    return new_tokens


def _checked_forward(
    model: "MegatronModule | Sequence[MegatronModule]",
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    vocab_size: int | None,
) -> "CachedForward":
    from megatron.bridge.inference.cached_forward import CachedForward

    longest = max(map(len, prompts))
    forward = CachedForward(model, longest + params.max_new_tokens, len(prompts), vocab_size)
    for prompt in prompts:
        _check_prompt(prompt, forward.vocab_size)
    limit = context_length(forward.config)
    if longest + params.max_new_tokens > limit:
        raise BridgeError(
            f"generation: {longest} prompt tokens and {params.max_new_tokens} new ones do not fit into the "
            f"model's {limit} positions; shorten the prompt or lower max_new_tokens"
        )
    return forward


def _generate(
    forward: "CachedForward", prompts: list[list[int]], params: SamplingParams, eos: frozenset[int]
) -> Iterator[list[int | None]]:
    """The next token of each sequence, `None` for those that have ended, until all have."""
    import torch

    from megatron.bridge.transport.pipeline import broadcast_from_last

    generators = [torch.Generator().manual_seed(params.seed) for _ in prompts]
    pieces, has_ended = prompts, [False] * len(prompts)
    for _ in range(params.max_new_tokens):
        logits = forward(pieces)
        chosen = None
        if logits is not None:
            chosen = [sample(row, params, generator) for row, generator in zip(logits, generators, strict=True)]
        tokens = broadcast_from_last(chosen, len(prompts), forward.device, forward.group)
        yield [None if ended else token for token, ended in zip(tokens, has_ended, strict=True)]
        has_ended = [ended or token in eos for token, ended in zip(tokens, has_ended, strict=True)]
        if all(has_ended):
            return
        pieces = [[token] for token in tokens]


def _check_prompt(prompt_ids: Sequence[int], vocab_size: int) -> None:
    if not prompt_ids:
        raise BridgeError(
            "generation: the prompt has no tokens, expected at least one (such as the tokenizer's bos token)"
        )
    outside = [token for token in prompt_ids if not 0 <= token < vocab_size]
    if outside:
        raise BridgeError(
            f"generation: prompt ids {outside[:5]} are outside of the model's vocabulary of {vocab_size} tokens; "
            "use the tokenizer that belongs to the model"
        )


def context_length(config: "DecoderConfig") -> int:
    """The number of positions that a model is made for.

    That is `seq_length` (HF `max_position_embeddings`). Where a rope scaling extends a length that may be stated
    unextended, it is the extended length (as vLLM computes it): linear and dynamic `seq_length * factor`, YaRN
    `original_max_position_embeddings * factor`.
    """
    length = int(config.seq_length)
    rope = getattr(config, "rope_parameters", None) or {}
    if config.position_embedding_type == "rope" and rope.get("rope_type") in _LENGTH_BEFORE_SCALING:
        original = rope.get("original_max_position_embeddings") or length
        length = max(length, int(original * rope.get("factor", 1.0)))
    return length


def generate_text(
    model: "MegatronModule | Sequence[MegatronModule]",
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    params: SamplingParams,
    chat: bool | None = None,
    system: str | None = None,
    eos_token_ids: Sequence[int] | None = None,
) -> Iterator[str]:
    """Yields new text in pieces that hold whole characters.

    Every rank of the model takes part (collective) and yields the same text.

    Args:
        model: as for `generate_tokens`.
        chat: put the prompt into the tokenizer's chat template as a user's message; default: if it has one.
        system: a system message before it.
        eos_token_ids: end of the text; default: the tokenizer's end token. `eos_token_ids()` finds a model's.

    Raises:
        BridgeError: no chat template, or one that refuses the messages; and what `generate_tokens` raises.
    """
    if chat is None:
        chat = tokenizer.chat_template is not None
    prompt_ids = _chat_ids(tokenizer, prompt, system) if chat else _plain_ids(tokenizer, prompt, system)
    if eos_token_ids is None:
        eos_token_ids = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    tokens = generate_tokens(model, prompt_ids, params, eos_token_ids)
    # A continuation is decoded after the end of its prompt: some tokenizers drop the space before a first word.
    stream = TextStream(tokenizer, () if chat else prompt_ids)
    return _text(tokens, stream, frozenset(eos_token_ids))


def _text(tokens: Iterator[int], stream: TextStream, eos: frozenset[int]) -> Iterator[str]:
    for token in tokens:
        if token in eos:
            break
        piece = stream.add(token)
        if piece:
            yield piece
    rest = stream.end()
    if rest:
        yield rest


def _plain_ids(tokenizer: "PreTrainedTokenizerBase", prompt: str, system: str | None) -> list[int]:
    if system is not None:
        raise BridgeError("generate_text: a system message needs a chat template (chat=True)")
    return list(tokenizer(prompt).input_ids)


def _chat_ids(tokenizer: "PreTrainedTokenizerBase", prompt: str, system: str | None) -> list[int]:
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise BridgeError("generate_text: chat=True, but the tokenizer has no chat template; pass chat=False")
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = " and ".join(message["role"] for message in messages)
        raise BridgeError(f"generate_text: the tokenizer's chat template refuses {roles} messages: {error}") from error
    return list(tokenizer(text, add_special_tokens=False).input_ids)  # the template writes the special tokens


def eos_token_ids(hf_pretrained: "PreTrainedCausalLM") -> tuple[int, ...]:
    """The ids that end a model's output: those of its generation config, else its config, else its tokenizer."""
    generation_config = getattr(hf_pretrained, "generation_config", None)
    ids = getattr(generation_config, "eos_token_id", None)
    if ids is None:
        ids = getattr(hf_pretrained.config, "eos_token_id", None)
    if ids is None:
        ids = _tokenizer_eos(hf_pretrained)
    if ids is None:
        return ()
    return (int(ids),) if isinstance(ids, int) else tuple(int(token) for token in ids)


def _tokenizer_eos(hf_pretrained: "PreTrainedCausalLM") -> int | None:
    try:
        eos_token_id: int | None = getattr(getattr(hf_pretrained, "tokenizer", None), "eos_token_id", None)
    except CheckpointError:  # a folder without a tokenizer
        return None
    return eos_token_id
