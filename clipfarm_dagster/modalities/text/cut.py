"""How much of a text a model reads: a beginning that gives the tokens that the whole text would give.

A tokenizer takes some 140 bytes of memory for each byte of text, and a model reads the first few hundred
tokens. Where those end cannot be told from characters alone: normalisation drops some (control and format
characters, accents), and a word can be of any length and yet be one token. So beginnings are tokenized, each
four times the length of the one before, until one settles the tokens that are wanted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipfarm_dagster.errors import InvalidRawObjectError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONGEST_TEXT = 2**18
"""Characters of a text that are looked at; part of the text stage's contract. A text of which these do not
settle the tokens, which are white space, invisible characters or one endless word for the most part, is
refused rather than given a vector that more of it might change."""

_LONGER_BY = 4


def plain_copy(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer of the same words that neither truncates nor pads; nobody else changes its state."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def cut_to_tokens(text: str, tokenizer: Tokenizer, wanted: int, *, start: int) -> str:
    """A beginning of `text` whose first `wanted` tokens are those of the whole text; `text` itself where it
    has at most `start` characters or not so many tokens.

    Args:
        text: at most `LONGEST_TEXT` characters; one of that length counts as the beginning of a longer one.
        tokenizer: from `plain_copy`.
        wanted: how many tokens, not counting those that a tokenizer puts around every text.
        start: length of the first beginning that is tried, in characters.

    Raises:
        InvalidRawObjectError: `text` has `LONGEST_TEXT` characters, and what follows might change its first
            `wanted` tokens.
    """
    length = start
    while length < len(text):
        beginning = text[:length]
        if settled_tokens(beginning, tokenizer) >= wanted:
            return beginning
        length *= _LONGER_BY
    if len(text) >= LONGEST_TEXT and settled_tokens(text, tokenizer) < wanted:
        raise InvalidRawObjectError(
            f"the first {LONGEST_TEXT} characters of a text do not hold the {wanted} word pieces that the"
            " model reads; they are white space, invisible characters or one endless word for the most part"
        )
    return text


def settled_tokens(beginning: str, tokenizer: Tokenizer) -> int:
    """How many of a beginning's tokens no continuation can change: those that end before its last word, which
    may go on, and before a special token such as `[SEP]` that might begin here and end after it."""
    made = tokenizer.encode(beginning, add_special_tokens=False)
    if not len(made):
        return 0
    special = max((len(token.content) for token in tokenizer.get_added_tokens_decoder().values()), default=0)
    last_word, ends_by = made.word_ids[-1], len(beginning) - special
    return sum(
        1
        for word, (_, end) in zip(made.word_ids, made.offsets, strict=True)
        if word != last_word and end <= ends_by
    )
