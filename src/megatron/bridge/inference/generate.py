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
    from megatron.bridge.inference.cached_forward import CachedForward

    prompt_ids = [int(token) for token in prompt_ids]
    forward = CachedForward(model, len(prompt_ids) + params.max_new_tokens, vocab_size=vocab_size)
    _check_prompt(prompt_ids, forward.vocab_size)
    limit = context_length(forward.config)
    if len(prompt_ids) + params.max_new_tokens > limit:
        raise BridgeError(
            f"generation: {len(prompt_ids)} prompt tokens and {params.max_new_tokens} new ones do not fit into the "
            f"model's {limit} positions; shorten the prompt or lower max_new_tokens"
        )
    return _generate(forward, prompt_ids, params, frozenset(eos_token_ids))


def _generate(
    forward: "CachedForward", prompt_ids: list[int], params: SamplingParams, eos: frozenset[int]
) -> Iterator[int]:
    import torch

    from megatron.bridge.transport.pipeline import broadcast_from_last

    generator = torch.Generator().manual_seed(params.seed)
    token_ids = prompt_ids
    for _ in range(params.max_new_tokens):
        logits = forward([token_ids])
        chosen = None if logits is None else sample(logits[0], params, generator)
        token = broadcast_from_last(chosen, forward.device, forward.group)
        yield token
        if token in eos:
            return
        token_ids = [token]


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
