"""However long a text is, only a beginning of it goes to the tokenizer, and gives the tokens of the whole."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from clipfarm_dagster.demo.checkpoints import minilm_folder
from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.text.cut import LONGEST_TEXT, cut_to_tokens, plain_copy

# what BERT's normaliser drops, splits at, or keeps together, and what stands for one token as it is
PIECES = (
    st.text(max_size=6)
    | st.sampled_from(
        ["a", "The ", "naïve", "o\u0301\u0323", "\u0301" * 9, "你好", "ใช้", "ΑΣ", "ß", "İ", "ﬁ"]
    )
    | st.sampled_from([" ", "\t\n", "\0", "\u200b", "\u202e", "\ufffd", "\u00ad\u2060", "\u2028", "\ue000"])
    | st.sampled_from(
        ["[SEP]", "[SE", "P]", "[", "[MASK]", "[CLS]", "...", "🤣", "👩‍👩‍👧", "\U000e0041", "1,2"]
    )
    | st.tuples(st.sampled_from(["x", "long", " ", "\u200b", "é", "\u0301"]), st.integers(1, 150)).map(
        lambda drawn: drawn[0] * drawn[1]
    )
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """MiniLM's, which neither truncates nor pads."""
    return plain_copy(Tokenizer.from_file(str(minilm_folder() / "tokenizer.json")))


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return found


@settings(max_examples=1500, deadline=None)
@given(pieces=st.lists(PIECES, max_size=60), wanted=st.integers(1, 30), start=st.integers(1, 40))
def test_the_first_tokens_are_those_of_the_whole(
    tokenizer: Tokenizer, pieces: list[str], wanted: int, start: int
):
    text = "".join(pieces)

    cut = cut_to_tokens(text, tokenizer, wanted, start=start)

    assert text.startswith(cut)
    assert ids(tokenizer, cut)[:wanted] == ids(tokenizer, text)[:wanted]


@settings(max_examples=100, deadline=None)
@given(pieces=st.lists(PIECES, min_size=1, max_size=5), wanted=st.integers(1, 256))
def test_a_long_text_is_cut_to_little_more_than_is_wanted(
    tokenizer: Tokenizer, pieces: list[str], wanted: int
):
    once = "".join(pieces)
    if not ids(tokenizer, f"{once}, "):
        return
    text = f"{once}, " * 3_000

    cut = cut_to_tokens(text, tokenizer, wanted, start=64)

    assert ids(tokenizer, cut)[:wanted] == ids(tokenizer, text)[:wanted]
    assert len(cut) <= max(64, 4 * (wanted + 6) * (len(once) + 2))


def test_a_short_text_is_not_looked_at(tokenizer: Tokenizer):
    text = "Rain on the sea. " * 10
    assert cut_to_tokens(text, tokenizer, 256, start=2_048) is text


@pytest.mark.parametrize("filler", [" ", "\u200b", "x"], ids=["spaces", "invisible", "one word"])
def test_what_has_not_enough_words_in_its_longest_beginning_is_refused(tokenizer: Tokenizer, filler: str):
    longest = ("rain " + filler * LONGEST_TEXT)[:LONGEST_TEXT]

    assert cut_to_tokens(longest[:-1], tokenizer, 256, start=2_048) == longest[:-1]
    with pytest.raises(InvalidRawObjectError, match=f"first {LONGEST_TEXT} characters"):
        cut_to_tokens(longest, tokenizer, 256, start=2_048)
