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
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
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
