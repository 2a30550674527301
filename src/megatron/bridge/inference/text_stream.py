"""From a stream of tokens to a stream of text that may be printed at once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a decoder puts in place of bytes that are no character (yet).
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

_CONTEXT = 8


class TextStream:
    """Decodes tokens one at a time.

    A character may take several tokens, and a token's text may depend on the one before it (a space before a word).
    So the newest tokens are decoded together with those of the last piece, and the difference is the next piece.
    Special tokens give no text.

    Args:
        tokenizer: a tokenizer of transformers.
        prompt_ids: the tokens that the text continues.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._before = list(prompt_ids[-_CONTEXT:])
        self._new: list[int] = []

    def add(self, token: int) -> str:
        """The text that is complete with this token, or an empty string."""
        self._new.append(token)
        return self._advance(whole_characters=True)

    def end(self) -> str:
        """What was held back, when no token follows."""
        return self._advance(whole_characters=False)

    def _advance(self, whole_characters: bool) -> str:
        before = self._decode(self._before)
        text = self._decode(self._before + self._new)
        if len(text) <= len(before) or (whole_characters and text.endswith(_INCOMPLETE)):
            return ""
        self._before, self._new = self._new, []
        return text[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
