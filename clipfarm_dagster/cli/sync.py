"""`clipfarm sync`: plan, and run the delta through Dagster in this process."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
import typer
from filelock import FileLock, Timeout

from clipfarm_dagster.checkpoints.content_check import check_content
from clipfarm_dagster.cli.output import (
    Json,
    Stages,
    console,
    dagster_instance,
    error_console,
    print_json,
    table,
)
from clipfarm_dagster.cli.progress import Listener, progress_bars
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.schema import FAILED_STATUSES, Status
from clipfarm_dagster.modalities.registry import stage_checkpoint
from clipfarm_dagster.orchestration.in_process import run_in_process
from clipfarm_dagster.settings import Settings, load_settings
from clipfarm_dagster.stages import Stage


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(sync)


def sync(stage: Stages = None, as_json: Json = False) -> None:
    """Embed everything that is new or changed, through Dagster, in this process."""
    settings = load_settings()
    corpus = Corpus.open(settings)
    with _alone(settings), dagster_instance(settings) as instance:
        answer = sync_corpus(corpus, instance, stage or list(Stage), quiet=as_json)
    if as_json:
        print_json({"stages": answer})
    else:
        console().print(_summary(answer))
        if refused := corpus.latest_rows().refused_ids:
            console().print(
                f"{refused:,} rows of the CSV are refused for their video_id; see `clipfarm plan`"
            )
    failed = sum(entry.get(str(status), 0) for entry in answer.values() for status in FAILED_STATUSES)
    raise typer.Exit(1 if failed else 0)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """Wait while another sync of this home folder is at work; what it has done is then not done again."""
    settings.home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.home_files.sync_lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        error_console().print(f"clipfarm: waiting for another sync of {settings.home}", soft_wrap=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def sync_corpus(
    corpus: Corpus, instance: dg.DagsterInstance, stages: list[Stage], *, quiet: bool = False
) -> dict[str, dict[str, Any]]:
    """Bring `stages` up to date; counts by stage and ledger status, of this call only.

    Raises:
        ClipFarmError: the metadata, the store, a ledger or a model cannot be used.
    """
    from clipfarm_dagster.definitions import build_definitions
    from clipfarm_dagster.orchestration.launching import add_partitions, settle
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
    from clipfarm_dagster.orchestration.runs.dead import fail_dead_runs
    from clipfarm_dagster.orchestration.runs.in_flight import videos_in_flight

    latest = corpus.latest_rows()
    for stage in stages:  # what cannot be had is told before anything begins
        corpus.contract(stage)
    known = set(instance.get_dynamic_partitions(DEFAULT_NAMES.partitions_name))
    add_partitions(instance, DEFAULT_NAMES, latest.video_ids(), known)
    fail_dead_runs(instance, DEFAULT_NAMES)
    answer: dict[str, dict[str, Any]] = {}
    left: Counter[Stage] = Counter()
    with progress_bars(quiet) as bars:
        listener = Listener(bars)
        definitions = build_definitions(resource_overrides={"progress": listener})
        for stage in stages:
            started = time.monotonic()
            with corpus.stage(stage) as opened:
                theirs = videos_in_flight(instance, DEFAULT_NAMES)[stage]
                left[stage] += len(theirs)
                plan = opened.plan(latest, in_flight=theirs)
                if plan.work.num_rows:  # a model that cannot be had is told before anything is written
                    check_content(stage_checkpoint(stage, corpus.settings), corpus.store, corpus.keys)
                settle(instance, DEFAULT_NAMES, opened, plan)
                opened.ledger.push()
            left[stage] += _embed(
                corpus, instance, definitions, stage, plan.work["video_id"].to_pylist(), listener
            )
            counts = listener.finished[stage]
            model_calls = counts.pop("model_calls", 0)
            if plan.missing.num_rows:
                counts[str(Status.MISSING_RAW_OBJECT)] += plan.missing.num_rows
            answer[str(stage)] = {
                **counts,
                "model_calls": model_calls,
                "seconds": round(time.monotonic() - started, 3),
            }
    if some := ", ".join(f"{count:,} {stage}" for stage, count in left.items() if count):
        print(
            f"clipfarm: left to other runs: {some}; `clipfarm dev` shows them, and starts those in its queue",
            file=sys.stderr,
        )
    return answer


def _embed(
    corpus: Corpus,
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    stage: Stage,
    video_ids: list[str],
    listener: Listener,
) -> int:
    """Embed some videos in runs of this process; returns how many were left to other runs."""
    from clipfarm_dagster.orchestration.launching import chunks
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
    from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config, id_list_run_tags
    from clipfarm_dagster.orchestration.runs.in_flight import videos_in_flight

    left = 0
    if video_ids:
        listener.start(stage, len(video_ids))
    for planned in chunks(video_ids, corpus.settings.run_size):
        # the sensor may have taken some meanwhile; what it has finished costs no model call
        theirs = videos_in_flight(instance, DEFAULT_NAMES)[stage]
        chunk = [video_id for video_id in planned if video_id not in theirs]
        listener.start(stage, len(chunk) - len(planned))
        left += len(planned) - len(chunk)
        if not chunk:
            continue
        run_in_process(
            definitions.resolve_job_def(DEFAULT_NAMES.embedding_job(stage)),
            instance,
            id_list_run_config(DEFAULT_NAMES, stage, chunk),
            id_list_run_tags(DEFAULT_NAMES, stage, chunk),
        )
    return left


def _summary(answer: dict[str, dict[str, Any]]) -> Any:
    rows = []
    for stage, entry in answer.items():
        statuses = {k: v for k, v in entry.items() if k not in ("model_calls", "seconds")}
        text = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()))
        rows.append(
            [stage, text or "nothing to do", f"{entry['model_calls']:,}", f"{entry['seconds']:.1f} s"]
        )
    return table("This sync", ["stage", "recorded", "through the model", "time"], rows)
