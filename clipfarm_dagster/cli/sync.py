"""`clipfarm sync`: plan, and run the delta through Dagster in this process."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

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
    examples,
    open_corpus,
    print_json,
    table,
)
from clipfarm_dagster.cli.progress import Listener, progress_bars
from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.errors import ErasureError, ManifestError, SettingsError, VideoNotFoundError
from clipfarm_dagster.ledger.schema import FAILED_STATUSES, Status
from clipfarm_dagster.maintenance.migration import finish_cut_over
from clipfarm_dagster.maintenance.readiness import cut_over_when_ready
from clipfarm_dagster.modalities.registry import stage_checkpoint
from clipfarm_dagster.orchestration.in_process import failed_items, run_in_process
from clipfarm_dagster.settings import Settings, load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.keys import check_video_id

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_FAILURES = 10
"""Failures that are named; `clipfarm status` names more."""

_LOOK_AGAIN_AFTER = 10
"""While a candidate is filled, so many times as long as planning takes passes before it is planned again what
is new for what serves."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog=examples("clipfarm sync", "clipfarm sync --stage text", "clipfarm sync --force VIDEO_ID")
    )(sync)


def sync(
    video_ids: Annotated[list[str] | None, typer.Argument(metavar="[VIDEO_ID]...")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Embed the named videos again, also where they are up to date.")
    ] = False,
    stage: Stages = None,
    as_json: Json = False,
) -> None:
    """Embed everything that is new or changed, through Dagster, in this process.

    With ids, only these videos.
    """
    from clipfarm_dagster.orchestration.erasure_finishing import erasures_followed
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES

    if force and not video_ids:
        raise SettingsError("name the videos to embed again, as in `clipfarm sync --force VIDEO_ID`")
    settings = load_settings()
    corpus = open_corpus(settings)
    chosen = Chosen(_known(corpus, video_ids), force) if video_ids else None
    with _alone(settings), dagster_instance(settings) as instance:
        _finish_erasures(corpus, instance)
        with erasures_followed(corpus, instance, DEFAULT_NAMES):
            synced = sync_corpus(corpus, instance, stage or list(Stage), chosen=chosen, quiet=as_json)
        _finish_erasures(corpus, instance)
    if as_json:
        told: dict[str, Any] = {"stages": synced.stages}
        print_json(told | ({"candidates": synced.candidates} if synced.candidates else {}))
    else:
        console().print(_summary("This sync", synced.stages))
        if synced.candidates:
            console().print(_summary("For the models that the settings ask for", synced.candidates))
        if synced.failures:
            console().print()
            console().print(_failures(synced))
        if refused := corpus.latest_rows().refused_ids:
            console().print(
                f"{refused:,} rows of the CSV are refused for their video_id; see `clipfarm plan`"
            )
    raise typer.Exit(1 if synced.failed or synced.waiting else 0)


@dataclass(frozen=True)
class Chosen:
    """The videos that alone a sync is to embed."""

    video_ids: frozenset[str]
    force: bool
    """Whether to embed them also where they are up to date."""


def _known(corpus: Corpus, video_ids: Sequence[str]) -> frozenset[str]:
    """The ids.

    Raises:
        InvalidVideoIdError: one is not a `video_id`.
        VideoNotFoundError: the metadata has no row of one, or it was erased.
    """
    ids = frozenset(check_video_id(video_id) for video_id in video_ids)
    if unknown := sorted(ids.difference(corpus.latest_rows().video_ids())):
        raise VideoNotFoundError(
            f"{corpus.metadata.url} has no row of {', '.join(map(repr, unknown))}, or it was erased;"
            " nothing was embedded"
        )
    return ids


def _finish_erasures(corpus: Corpus, instance: dg.DagsterInstance) -> None:
    """Do what is left to do of erasures; if that cannot be done now, say so, for other videos are waiting."""
    from clipfarm_dagster.orchestration.erasure_finishing import finish_erasures
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES

    try:
        waits_for = finish_erasures(corpus, instance, DEFAULT_NAMES).waits_for
    except ErasureError as error:
        waits_for = frozenset()
        error_console().print(f"clipfarm: an erasure is not finished: {error}", soft_wrap=True)
    if waits_for:
        some = ", ".join(sorted(waits_for))
        error_console().print(f"clipfarm: an erasure waits until {some} has ended in Dagster", soft_wrap=True)


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
    corpus: Corpus,
    instance: dg.DagsterInstance,
    stages: list[Stage],
    *,
    chosen: Chosen | None = None,
    quiet: bool = False,
) -> Synced:
    """Bring `stages` up to date: what serves first, then the candidates, which serve when they have all.

    Args:
        chosen: only these videos.

    Raises:
        ClipFarmError: the metadata, the store, a ledger or a model cannot be used.
    """
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
    from clipfarm_dagster.orchestration.runs.dead import fail_dead_runs

    unfinished = []
    for stage in stages:  # what cannot be had is told before anything begins
        corpus.contract(stage)
        try:
            finish_cut_over(corpus, stage)
        except ManifestError:  # vectors that it found lost are embedded first
            unfinished.append(stage)
    fail_dead_runs(instance, DEFAULT_NAMES)
    synced = Synced()
    with progress_bars(quiet) as bars:
        serving = _Pass(corpus, instance, Listener(bars), synced, chosen)
        for stage in stages:
            synced.stages[str(stage)] = serving.run(stage)
            if stage in unfinished:
                finish_cut_over(corpus, stage)
        between = partial(serving.look_again, stages)
        filling = _Pass(
            corpus, instance, Listener(bars, " candidate"), synced, chosen, between, candidates=True
        )
        for stage in [stage for stage in stages if _has_candidate(corpus, stage)]:
            synced.candidates[str(stage)] = filling.run(stage)
            if _cut_over(corpus, instance, stage):
                synced.waiting.pop(stage, None)
                synced.stages[str(stage)] = serving.run(stage)  # what came up or had to wait meanwhile
    if some := ", ".join(f"{count:,} {stage}" for stage, count in synced.left.items() if count):
        print(
            f"clipfarm: left to other runs: {some}; `clipfarm dev` shows them, and starts those in its queue",
            file=sys.stderr,
        )
    for stage, why in synced.waiting.items():
        print(f"clipfarm: {stage} videos wait for the model that serves: {why}", file=sys.stderr)
    return synced


@dataclass
class Synced:
    """What one call did, of this call only."""

    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Counts by stage and ledger status, of the generations that serve."""
    candidates: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same of the candidates that there were."""
    waiting: dict[Stage, str] = field(default_factory=dict)
    """Stages whose videos cannot be embedded for what serves, and why."""
    failures: list[dict[str, str]] = field(default_factory=list)
    """The first of the items that failed: `stage`, `video_id`, `status`, `error`."""
    left: Counter[Stage] = field(default_factory=Counter)
    """Videos that other runs have in hand."""

    @property
    def failed(self) -> int:
        """Items that failed."""
        entries = [*self.stages.values(), *self.candidates.values()]
        return sum(entry.get(str(status), 0) for entry in entries for status in FAILED_STATUSES)


def _has_candidate(corpus: Corpus, stage: Stage) -> bool:
    with corpus.stage(stage) as opened:
        return opened.candidate() is not None


def _cut_over(corpus: Corpus, instance: dg.DagsterInstance, stage: Stage) -> bool:
    """Let a stage's candidate serve if it has all; tells whether it does now."""
    from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
    from clipfarm_dagster.orchestration.reconcile import reconcile

    found = cut_over_when_ready(corpus, stage)
    if found is None or not found.ready:
        why = "" if found is None else "; ".join([*found.missing, *found.held])
        print(f"clipfarm: the {stage} vectors of the wanted model do not serve yet: {why}", file=sys.stderr)
        return False
    reconcile(corpus, instance, DEFAULT_NAMES, stage)
    print(f"clipfarm: the {stage} vectors of contract {found.contract_id} serve now", file=sys.stderr)
    return True


class _Pass:
    """Embeds what is new or changed, in the generations that serve or in the candidates."""

    def __init__(
        self,
        corpus: Corpus,
        instance: dg.DagsterInstance,
        listener: Listener,
        synced: Synced,
        chosen: Chosen | None = None,
        between: Callable[[], None] = lambda: None,
        *,
        candidates: bool = False,
    ) -> None:
        """`between` is called after each run of a stage but the last; only `chosen` videos are embedded."""
        from clipfarm_dagster.definitions import build_definitions

        self._corpus, self._instance, self._between = corpus, instance, between
        self._missing: Counter[Stage] = Counter()
        self._seconds = dict.fromkeys(Stage, 0.0)
        self._planning, self._looked_at = 0.0, time.monotonic()
        self._listener, self._synced, self._candidates = listener, synced, candidates
        self._chosen, self._forced = chosen, set[Stage]()
        self._definitions = build_definitions(resource_overrides={"progress": listener})

    def run(self, stage: Stage) -> dict[str, Any]:
        """Bring a stage up to date; counts by ledger status, of all calls."""
        from clipfarm_dagster.orchestration.candidates import unavailable, without_work
        from clipfarm_dagster.orchestration.launching import add_partitions, settle
        from clipfarm_dagster.orchestration.names import DEFAULT_NAMES

        corpus, instance, started = self._corpus, self._instance, time.monotonic()
        latest = corpus.latest_rows()  # asked for now: what was read for another stage may have given way
        known = set(instance.get_dynamic_partitions(DEFAULT_NAMES.partitions_name))
        add_partitions(instance, DEFAULT_NAMES, latest.video_ids(), known)
        with corpus.stage(stage) as serving:
            opened = (serving.candidate() or serving) if self._candidates else serving
            generation = None if opened.serves else opened.contract.id
            theirs = self._in_flight(opened)
            self._synced.left[stage] += len(theirs)
            listing = opened.raw_listing(latest)
            plan = opened.plan_from(latest, listing, in_flight=theirs)
            if self._chosen is not None:
                plan = plan.only(self._chosen.video_ids)
            forced = self._to_force(opened, listing, theirs)
            if (plan.work.num_rows or forced) and (why := unavailable(opened)) is not None:
                self._synced.waiting[stage] = why
                plan, forced = without_work(plan), []
            if plan.work.num_rows or forced:  # a model that cannot be had is told before anything is written
                check_content(stage_checkpoint(stage, opened.model_settings), corpus.store, corpus.keys)
            settle(instance, DEFAULT_NAMES, opened, plan)
            opened.ledger.push()
        self._planning += time.monotonic() - started
        self._embed(opened, generation, forced or plan.work["video_id"].to_pylist(), force=bool(forced))
        counts = self._listener.finished[stage].copy()
        model_calls = counts.pop("model_calls", 0)
        self._missing[stage] += plan.missing.num_rows
        if self._missing[stage]:
            counts[str(Status.MISSING_RAW_OBJECT)] += self._missing[stage]
        self._looked_at = time.monotonic()
        self._seconds[stage] += self._looked_at - started
        return {**counts, "model_calls": model_calls, "seconds": round(self._seconds[stage], 3)}

    def _to_force(self, opened: StageCorpus, listing: pa.Table, theirs: set[str]) -> list[str]:
        """The chosen videos to embed whatever the plan says: once, and if their raw object is there."""
        if self._chosen is None or not self._chosen.force or opened.stage in self._forced:
            return []
        self._forced.add(opened.stage)
        there = set(listing["key"].to_pylist())
        ids = sorted(self._chosen.video_ids - theirs)
        return [video_id for video_id in ids if opened.keys.raw(opened.stage, video_id) in there]

    def look_again(self, stages: Sequence[Stage]) -> None:
        """Bring stages up to date again, unless that was done just now for how long it takes to plan."""
        if time.monotonic() - self._looked_at >= _LOOK_AGAIN_AFTER * self._planning:
            self._planning = 0.0
            for stage in stages:
                self._synced.stages[str(stage)] = self.run(stage)

    def _embed(
        self, opened: StageCorpus, generation: str | None, video_ids: list[str], *, force: bool = False
    ) -> None:
        """Embed some videos in runs of this process."""
        from clipfarm_dagster.orchestration.launching import chunks
        from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
        from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config, id_list_run_tags

        stage = opened.stage
        job = DEFAULT_NAMES.embedding_job(stage) if generation is None else DEFAULT_NAMES.candidate_job(stage)
        if video_ids:
            self._listener.start(stage, len(video_ids))
        for planned in chunks(video_ids, self._corpus.settings.ids_per_run):
            # the sensor may have taken some meanwhile; what it has finished costs no model call
            theirs = self._in_flight(opened)
            chunk = [video_id for video_id in planned if video_id not in theirs]
            self._listener.start(stage, len(chunk) - len(planned))
            self._synced.left[stage] += len(planned) - len(chunk)
            if not chunk:
                continue
            result = run_in_process(
                self._definitions.resolve_job_def(job),
                self._instance,
                id_list_run_config(DEFAULT_NAMES, stage, chunk, generation, force=force),
                id_list_run_tags(DEFAULT_NAMES, stage, chunk, generation),
            )
            self._synced.failures += [{"stage": str(stage)} | failed for failed in failed_items(result)]
            if planned[-1] != video_ids[-1]:
                self._between()

    def _in_flight(self, opened: StageCorpus) -> set[str]:
        from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
        from clipfarm_dagster.orchestration.runs.in_flight import videos_in_flight

        return videos_in_flight(self._instance, DEFAULT_NAMES).of(opened)


def _failures(synced: Synced) -> Any:
    columns = ["stage", "video_id", "status", "error"]
    rows = [[failure[column] for column in columns] for failure in synced.failures[:SHOWN_FAILURES]]
    title = "Failures"
    if synced.failed > len(rows):
        title = f"{len(rows)} of {synced.failed:,} failures; `clipfarm status` shows more"
    return table(title, [*columns[:-1], "cause"], rows)


def _summary(title: str, answer: dict[str, dict[str, Any]]) -> Any:
    rows = []
    for stage, entry in answer.items():
        statuses = {k: v for k, v in entry.items() if k not in ("model_calls", "seconds")}
        text = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()))
        rows.append(
            [stage, text or "nothing to do", f"{entry['model_calls']:,}", f"{entry['seconds']:.1f} s"]
        )
    return table(title, ["stage", "recorded", "through the model", "time"], rows)
