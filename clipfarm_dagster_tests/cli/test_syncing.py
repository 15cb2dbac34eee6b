"""What `clipfarm sync` says while it works, and of what failed."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from clipfarm_dagster.cli.progress import Listener, progress_bars
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.engine.progress import Progress
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.migrating import TEXTS, Migrating
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

folder_store = pytest.mark.parametrize("store", ["folder"], indirect=True)

Command = Callable[..., Ended]


def put_broken_texts(corpus: Corpus, count: int) -> None:
    ids = [f"broken{number:02d}" for number in range(count)]
    put_metadata(corpus, [metadata_row(video_id) for video_id in [*ids, "good"]])
    for video_id in ids:
        corpus.store.put(corpus.keys.raw(Stage.TEXT, video_id), b"no JSON")
    put_transcript(corpus, "good", "said")


@folder_store
def test_the_first_failures_are_named_with_their_causes(corpus: Corpus, clipfarm: Command):
    put_broken_texts(corpus, 12)

    ended = clipfarm("sync", "--stage", "text")

    failures = ended.output.split("10 of 12 failures; `clipfarm status` shows more")[1].splitlines()
    named = [line.split() for line in failures if line.startswith("text")]
    assert ended.code == 1
    assert len({line[1] for line in named} & {f"broken{number:02d}" for number in range(12)}) == 10
    assert {line[2] for line in named} == {"invalid_raw_object"}
    assert all("JSON" in line for line in failures if line.startswith("text"))


@folder_store
def test_a_run_tells_its_listener_that_the_model_is_loading(
    corpus: Corpus, clipfarm: Command, monkeypatch: pytest.MonkeyPatch
):
    put_broken_texts(corpus, 1)
    report, told = Listener.__call__, []

    def listen(listener: Listener, stage: Stage, progress: Progress) -> None:
        told.append((progress.loading, progress.done))
        report(listener, stage, progress)

    monkeypatch.setattr(Listener, "__call__", listen)
    clipfarm("sync", "--stage", "text", "--json")

    assert told[:2] == [(True, 0), (False, 0)]
    assert not any(loading for loading, _ in told[2:])


def test_a_bar_says_that_the_model_is_loading_and_never_that_nothing_is_done_a_second():
    bars = progress_bars(quiet=False)
    listener, progress = Listener(bars), Progress(total=2)
    listener.start(Stage.VIDEO, 2)

    progress.loading = True
    listener(Stage.VIDEO, progress)
    assert "loading the model" in drawn(bars)

    progress.loading, progress.outcomes = False, {"success": 1}
    progress.started -= 100
    listener(Stage.VIDEO, progress)
    assert "loading" not in drawn(bars)
    assert "0.6/min" not in drawn(bars)
    assert "36/h" in drawn(bars)


def drawn(bars: Bars) -> str:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as captured:
        console.print(bars.get_renderable())
    return captured.get()


def put_texts(corpus: Corpus, *video_ids: str) -> None:
    put_metadata(corpus, [metadata_row(video_id) for video_id in video_ids])
    for video_id in video_ids:
        put_transcript(corpus, video_id, f"said in {video_id}")


@folder_store
def test_only_the_named_videos_are_embedded_and_again_only_if_forced(corpus: Corpus, clipfarm: Command):
    put_texts(corpus, "a", "b", "c")
    named = ("sync", "--stage", "text", "a", "b", "--json")

    first, second, forced = clipfarm(*named), clipfarm(*named), clipfarm(*named, "--force")

    assert [ended.code for ended in (first, second, forced)] == [0, 0, 0]
    calls = [ended.json["stages"]["text"]["model_calls"] for ended in (first, second, forced)]
    assert calls == [2, 0, 2]
    with corpus.ledger(Stage.TEXT) as ledger:
        assert set(ledger.rows("abc")) == {"a", "b"}
    assert clipfarm("plan", "--stage", "text", "--json").json["stages"]["text"]["reasons"] == {"new": 1}


@folder_store
def test_what_is_named_wrongly_is_told_before_anything_is_embedded(corpus: Corpus, clipfarm: Command):
    put_texts(corpus, "a")

    unknown, bad, nobody = (clipfarm("sync", *names) for names in (("a", "x"), ("../a",), ("--force",)))

    assert [ended.code for ended in (unknown, bad, nobody)] == [2, 2, 2]
    assert "has no row of 'x'" in unknown.errors
    assert "'../a' is refused" in bad.errors
    assert "name the videos" in nobody.errors
    with corpus.ledger(Stage.TEXT) as ledger:
        assert ledger.counts() == {}


@folder_store
def test_a_forced_video_whose_raw_object_is_gone_keeps_its_vector(corpus: Corpus, clipfarm: Command):
    put_texts(corpus, "a")
    clipfarm("sync", "--stage", "text")
    corpus.store.delete(corpus.keys.raw(Stage.TEXT, "a"))

    ended = clipfarm("sync", "--stage", "text", "--force", "a", "--json")

    assert (ended.code, ended.json["stages"]["text"]["model_calls"]) == (0, 0)
    with corpus.ledger(Stage.TEXT) as ledger:
        assert ledger.rows("a")["a"].status == Status.SUCCESS


@folder_store
def test_forcing_embeds_in_what_serves_and_in_the_candidate(
    corpus: Corpus, clipfarm: Command, monkeypatch: pytest.MonkeyPatch
):
    migrating = Migrating(corpus)
    monkeypatch.setenv("CLIPFARM_TEXT_DTYPE", "bfloat16")
    monkeypatch.setenv("CLIPFARM_CUT_OVER", "manual")

    first = clipfarm("sync", "--stage", "text", "bread", "--json").json
    forced = clipfarm("sync", "--stage", "text", "--force", "bread", "--json").json

    assert [first[part]["text"]["model_calls"] for part in ("stages", "candidates")] == [0, 1]
    assert [forced[part]["text"]["model_calls"] for part in ("stages", "candidates")] == [1, 1]
    with corpus.stage(Stage.TEXT, migrating.new) as candidate:
        assert set(candidate.ledger.rows(TEXTS)) == {"bread"}
