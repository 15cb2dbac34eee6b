"""What a transcript must be, to be embedded."""

from __future__ import annotations

import pytest

from clipfarm_dagster.errors import InvalidRawObjectError
from clipfarm_dagster.modalities.text.encoder import TextPreparer


def test_metadata_and_transcript_are_the_two_texts() -> None:
    prepared = TextPreparer()(
        rb'{"transcript": "caf\u00e9 \ud83d\ude00"}', {"title": "t", "description": "d", "query": "q"}
    )
    assert prepared.inputs == ("t [SEP] d [SEP] q", "café \N{GRINNING FACE}")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xff\xfe{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["transcript"]', "'transcript'"),
        (b'{"transcript": 1}', "'transcript'"),
        (rb'{"transcript": "half \ud83d of a pair"}', r"not valid Unicode: .* position 5\b"),
    ],
)
def test_what_has_no_transcript_is_the_raw_objects_fault(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidRawObjectError, match=message):
        TextPreparer()(raw, {"title": "t"})
