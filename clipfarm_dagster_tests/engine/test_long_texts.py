"""One long transcript: embedded from what the model reads of it, under the limits, and nobody else's cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipfarm_dagster.engine.local.preparation import LARGE_BYTES
from clipfarm_dagster.modalities.encoder import Prepared
from clipfarm_dagster.modalities.previews import PREVIEW_CHARACTERS
from clipfarm_dagster.modalities.text.cut import LONGEST_TEXT
from clipfarm_dagster.modalities.text.encoder import TextPreparer
from clipfarm_dagster_tests.support.bench import Bench, transcripts

SAID = "Rain on the sea, and the naïve fox of Ørsted said 你好 to the waves. "

CHILD = """
import json, resource, sys
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

encoder = load_encoder(Stage.TEXT, load_settings(home=sys.argv[1], device="cpu"))
said = sys.argv[2]
raw = [json.dumps({"transcript": said * (size // len(said))}).encode() for size in (10_000, 10_000_000)]
peaks, vectors = [], []
for one in raw:
    vectors.append(encoder.encode([encoder.preparer(one, {"title": "t"})])[0].tobytes().hex())
    peaks.append(peak())
print(json.dumps({"growth": (peaks[1] - peaks[0]) / len(raw[1]), "vectors": vectors}))
"""


@pytest.fixture(autouse=True)
def large_objects(request: pytest.FixtureRequest) -> None:
    """Raw objects as large as the settings' defaults allow."""
    if "text" in request.fixturenames:
        text: Bench = request.getfixturevalue("text")
        text.options = replace(text.options, max_object_bytes=2**31)


def spoken(characters: int, said: str = SAID) -> bytes:
    return json.dumps({"transcript": said * (characters // len(said))}, ensure_ascii=False).encode()


def test_a_long_transcript_takes_memory_for_its_bytes_and_no_more(
    tmp_path: Path, checkpoints: dict[str, str]
):
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), SAID],
        env={**os.environ, **checkpoints},
        check=True,
        timeout=600,
        capture_output=True,
        text=True,
    )

    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["growth"] < 20  # 140 where all of it was tokenized
    assert found["vectors"][0] == found["vectors"][1]


@pytest.mark.parametrize("said", [SAID, "你好" * 30, "x" * 120 + " ", "o\u0301" * 40 + "\u200b ", "[SEP]. "])
def test_the_vector_is_that_of_the_whole_text(text: Bench, said: str):
    long = said * (150_000 // len(said))
    model = text.encoder._model  # type: ignore[attr-defined]

    found = text.encoder.encode([Prepared((long, long), None)])[0]

    whole = model.encode([long], normalize_embeddings=True)[0]
    np.testing.assert_allclose(found, np.tile(whole, 2) / np.sqrt(2), atol=1e-6)


def test_a_large_object_is_prepared_by_a_worker_and_gives_the_same_vector(text: Bench):
    text.put({"large": spoken(3 * LARGE_BYTES), "small": spoken(LONGEST_TEXT // 2), **transcripts(3)})

    progress = text.run(["large", "small", *transcripts(3)])

    assert progress.outcomes == {"success": 5}
    assert progress.worker_peak_bytes > 0
    prepared = text.encoder.preparer(spoken(3 * LARGE_BYTES), {"title": "Title of large"})
    np.testing.assert_array_equal(text.vector("large"), text.encoder.encode([prepared])[0])
    assert len(prepared.inputs[1]) == LONGEST_TEXT


def test_small_objects_need_no_worker(text: Bench):
    text.put(transcripts(20))

    assert text.run(list(transcripts(20))).worker_peak_bytes == 0


def test_a_transcript_counts_against_the_limits(text: Bench):
    # strings in a list take several times their bytes
    greedy = b'{"transcript": "short", "words": [' + b'"some word",' * 3_000_000 + b'"end"]}'
    text.put({"greedy": greedy, "long": spoken(9 * 2**20), **transcripts(40)})
    text.options = replace(text.options, max_prepare_bytes=2**28, max_text_bytes=2**26)

    progress = text.run(["greedy", "long", *transcripts(40)])

    assert progress.outcomes == {"success": 41, "fail": 1}
    cause = f"preparation took more memory than CLIPFARM_MAX_PREPARE_BYTES={2**28}"
    assert text.row("greedy").error == cause


def test_a_transcript_over_its_own_limit_is_refused_by_the_setting(text: Bench):
    text.put({"long": spoken(2**21), **transcripts(3)})
    text.options = replace(text.options, max_text_bytes=2**21)

    progress = text.run(["long", *transcripts(3)])

    assert progress.outcomes == {"success": 3, "invalid_raw_object": 1}
    size = len(spoken(2**21))
    assert (
        text.row("long").error
        == f"the raw object has {size} bytes, more than CLIPFARM_MAX_TEXT_BYTES={2**21}"
    )


def test_the_smaller_limit_counts(text: Bench):
    text.put({"long": spoken(2**21)})
    text.options = replace(text.options, max_object_bytes=2**20, max_text_bytes=2**21)

    text.run(["long"])

    assert "CLIPFARM_MAX_OBJECT_BYTES=1048576" in (text.row("long").error or "")


def test_a_text_whose_tokens_stay_open_is_the_raw_objects_fault_and_nobody_elses(text: Bench):
    blank = json.dumps({"transcript": "rain" + " " * LONGEST_TEXT + "sea"}).encode()
    text.put({"blank": blank, **transcripts(20)})

    progress = text.run(["blank", *transcripts(20)])

    assert progress.outcomes == {"success": 20, "invalid_raw_object": 1}
    assert f"first {LONGEST_TEXT} characters" in (text.row("blank").error or "")


def test_a_preview_shows_a_beginning_and_says_so():
    said = SAID * 30_000
    preview = TextPreparer()(spoken(len(said)), {"title": "t", "description": said}, preview=True).preview

    assert preview is not None
    assert len(preview) < 3 * PREVIEW_CHARACTERS
    assert preview.count(f"the first {PREVIEW_CHARACTERS:,} of ") == 2
    assert f"{len(said):,} characters" in preview
    short = TextPreparer()(b'{"transcript": "short"}', {"title": "t"}, preview=True).preview
    assert short == "**Metadata**\n\n~~~\nt [SEP]  [SEP]\n~~~\n\n**Transcript**\n\n~~~\nshort\n~~~"


def test_the_cut_is_a_part_of_the_contract(text: Bench):
    assert text.encoder.contract.preprocess_params == {"longest_text": LONGEST_TEXT}
