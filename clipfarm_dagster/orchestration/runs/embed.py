"""What a run does that embeds videos, whatever launched it."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg

from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.corpus.checked_encoder import checked_encoder
from clipfarm_dagster.engine.computing import Computing
from clipfarm_dagster.engine.distributed.actors import RayOptions
from clipfarm_dagster.engine.distributed.ray_computing import RayComputing
from clipfarm_dagster.engine.engine import EngineOptions, LocalComputing, Progress, embed_items
from clipfarm_dagster.engine.local.preview import make_preview
from clipfarm_dagster.engine.node_kind import node_kind
from clipfarm_dagster.engine.options import cores
from clipfarm_dagster.engine.outcomes import Outcome, OutcomeKind
from clipfarm_dagster.errors import (
    InvalidRawObjectError,
    ModelUnavailableError,
    PreparationError,
    StoreError,
)
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.ledger.schema import LedgerRow
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.orchestration.events import outcome_events
from clipfarm_dagster.orchestration.launching import vectors_asset
from clipfarm_dagster.orchestration.names import (
    BROKEN_TAG,
    CONTRACT_TAG,
    ENVIRONMENT_TAG,
    FAILED_ITEMS_KEY,
    FAILURES_KEY,
    CorpusNames,
)
from clipfarm_dagster.orchestration.progress import ProgressListener
from clipfarm_dagster.orchestration.reconcile import reconcile
from clipfarm_dagster.orchestration.recording import Context, record_failed_partitions
from clipfarm_dagster.orchestration.resources.encoders import EncodersResource
from clipfarm_dagster.orchestration.runs.telling import tell
from clipfarm_dagster.planning.rates import record_work
from clipfarm_dagster.stages import Stage

_LISTED_FAILURES = 100

WANTED = "wanted"
"""In place of a contract id: the generation that the settings ask for, if another one serves."""


def embed_videos(
    context: Context,
    names: CorpusNames,
    stage: Stage,
    video_ids: Sequence[str],
    corpus: Corpus,
    encoders: EncodersResource,
    listener: ProgressListener,
    *,
    generation: str | None = None,
    force: bool = False,
) -> None:
    """Embed some videos in a running step, and tell Dagster of each one that succeeded.

    Args:
        generation: contract id of the generation that gets the vectors, or `WANTED`; by default the one that
            serves. Nothing is done for one that neither serves nor is asked for by the settings any more.
        force: embed also what is up to date, but for videos whose raw object is gone.

    Raises:
        dagster.Failure: items failed, or are unknown to the metadata; the others are done.
        ClipFarmError: the metadata, the store, the ledger or the model cannot be used.
    """
    single = len(video_ids) == 1
    failures: list[LedgerRow] = []

    with breakage_tagged(context), corpus.stage(stage) as serving:
        opened = _chosen(serving, generation)
        if opened is None:
            context.log.info(_nothing_to_fill(serving, generation))
            return
        opened.want_again()
        contract, ledger, served = opened.contract, opened.ledger, opened.serves
        asset = vectors_asset(names, opened)
        items = opened.work_items(video_ids, corpus.latest_rows())
        known = {item.video_id for item in items}
        unknown = [video_id for video_id in video_ids if video_id not in known]
        if erased := _erased(context, names, opened, unknown):
            context.log.info(f"{len(erased)} of the videos were erased; they are left out")
            unknown = [video_id for video_id in unknown if video_id not in erased]
        progress = Progress(len(items))
        log = _ProgressLog(context, progress)

        @contextmanager
        def loading() -> Iterator[None]:
            context.log.info(f"loading the {stage} model {contract.model_name}")
            progress.loading = True
            listener(stage, progress)
            try:
                yield
            finally:
                progress.loading = False
                listener(stage, progress)

        def on_recorded(outcomes: Sequence[Outcome]) -> None:
            failed = [outcome.row for outcome in outcomes if outcome.kind == OutcomeKind.FAILED]
            failures.extend(failed)
            if failed:  # told at once, each of them: a run that breaks never comes to its list of failures
                context.log.error("\n".join(f"{row.video_id}: {row.status}: {row.error}" for row in failed))
            if single:
                outcomes = [_with_preview(context, opened, items[0], outcome) for outcome in outcomes]
            events = [
                event
                for o in outcomes
                for event in outcome_events(names, stage, o, contract, corpus.store.url, asset)
            ]
            tell(context, asset, [row.video_id for row in failed], events)
            log.report()
            listener(stage, progress)

        try:
            embed_items(
                items,
                contract=contract,
                computing=_computing(context, opened, encoders, loading),
                store=corpus.store,
                keys=corpus.keys,
                ledger=ledger,
                place=opened.place,
                options=EngineOptions.from_settings(
                    corpus.settings, previews=single or corpus.settings.previews == "all", force=force
                ),
                on_recorded=on_recorded,
                progress=progress,
            )
        finally:
            listener(stage, progress)
            if not isinstance(sys.exception(), StoreError):  # a store that is away is not waited for again
                ledger.push()
        serving_now = corpus.serving.read().get(stage)
        if serving_now is not None and served != (serving_now.contract_id == contract.id):
            reconcile(corpus, context.instance, names, stage, video_ids=sorted(known))
    summary = progress.summary()
    planned = record_work(corpus.store, corpus.keys, stage, contract.id, progress.work.values())
    if planned is not None:  # what `clipfarm plan --nodes` would have said of these nodes
        summary["planned_seconds"] = round(planned, 3)
    context.log.info(f"{stage}: {progress.line()}")
    context.log.info(f"{stage}: {json.dumps(summary)}")
    context.instance.add_run_tags(context.run.run_id, _summary_tags(summary))
    if failures or unknown:
        record_failed_partitions(context, asset, unknown)
        raise _failure(stage, failures, unknown, len(video_ids), summary)


def _with_preview(context: Context, opened: StageCorpus, item: WorkItem, outcome: Outcome) -> Outcome:
    """An outcome with a preview, also where nothing had to be done: who asks for one partition wants to see
    it."""
    if outcome.preview or not outcome.succeeded:
        return outcome
    try:
        settings = opened.model_settings
        preview = make_preview(opened.stage, item, opened.store, opened.keys, settings)
    except (InvalidRawObjectError, PreparationError, StoreError, ModelUnavailableError) as error:
        context.log.warning(f"{item.video_id}: there is no preview: {error}")
        return outcome
    return replace(outcome, preview=preview)


def _chosen(serving: StageCorpus, generation: str | None) -> StageCorpus | None:
    if generation is None or generation == serving.contract.id:
        return serving
    candidate = serving.candidate()
    return candidate if candidate is not None and generation in (WANTED, candidate.contract.id) else None


def _nothing_to_fill(serving: StageCorpus, generation: str | None) -> str:
    if generation == WANTED:
        return (
            f"{serving.stage}: the model that the settings ask for serves already; materialize"
            f" `{serving.stage}_embedding` to embed these videos"
        )
    return (
        f"{serving.stage}: contract {generation} neither serves nor is asked for by the settings any more;"
        " nothing was embedded for it"
    )


def _erased(context: Context, names: CorpusNames, opened: StageCorpus, video_ids: Sequence[str]) -> set[str]:
    """Those of some videos that are erased, by id or by the tombstone that has taken its place."""
    erased = opened.ledger.follow_erasures()
    ids = erased.among(video_ids)
    if ids:  # this run may have been created after Dagster was cleaned of them
        from clipfarm_dagster.orchestration.erasure_finishing import mark_unclean

        mark_unclean(context.instance, names)
    return ids | erased.erasures.keys() & set(video_ids)


@contextmanager
def breakage_tagged(context: Context) -> Iterator[None]:
    """Tag the run where the block, and not some of its items, goes wrong."""
    try:
        yield
    except Exception as error:
        context.instance.add_run_tags(context.run.run_id, {BROKEN_TAG: type(error).__name__})
        raise


def _computing(
    context: Context,
    opened: StageCorpus,
    encoders: EncodersResource,
    loading: Callable[[], AbstractContextManager[None]],
) -> Computing:
    """Where the run's items are computed. The run is told by which contract, and in which environments;
    `loading` is entered while the model is loaded here."""
    settings, contract = opened.model_settings, opened.contract
    context.log.info(f"contract {contract.id}: {contract.to_json()}")
    environments: dict[str, str] = {}

    def tell_environment(environment_id: str, environment: str) -> None:
        environments[environment_id] = environment
        tags = {CONTRACT_TAG: contract.id, ENVIRONMENT_TAG: ",".join(sorted(environments))}
        context.instance.add_run_tags(context.run.run_id, tags)
        context.log.info(f"environment {environment_id}: {environment}")

    if settings.engine == "ray":
        return RayComputing(
            RayOptions.from_settings(settings),
            encoders.on_nodes(opened.stage, settings, opened.store.url),
            workers=settings.workers,
            on_node=lambda report: tell_environment(report.environment_id, report.environment),
            say=context.log.warning,
        )

    def load() -> Encoder:
        with loading():
            return checked_encoder(
                opened.stage,
                settings,
                opened.store,
                load=encoders.load,
                on_loaded=lambda environment: tell_environment(environment.id, environment.to_json()),
            )

    def kind() -> str:
        return node_kind(json.loads(next(iter(environments.values()))), cores())

    return LocalComputing(load, kind)


def _failure(
    stage: Stage,
    failures: Sequence[LedgerRow],
    unknown: Sequence[str],
    total: int,
    summary: Mapping[str, float | int | str],
) -> dg.Failure:
    """The failure that ends a run with failed items, saying which and why."""
    rows = [(row.video_id, str(row.status), row.error or "") for row in failures]
    rows += [(video_id, "not in the metadata", "the metadata CSV has no row for it") for video_id in unknown]
    listed = "\n".join(
        f"{video_id}: {status}: {error}" for video_id, status, error in rows[:_LISTED_FAILURES]
    )
    more = f"\n… and {len(rows) - _LISTED_FAILURES} more" if len(rows) > _LISTED_FAILURES else ""
    records = [
        dg.TableRecord({"video_id": video_id, "status": status, "error": error})
        for video_id, status, error in rows[:_LISTED_FAILURES]
    ]
    return dg.Failure(
        description=f"{len(rows)} of {total} {stage} items failed; the others are done.\n{listed}{more}",
        metadata={FAILED_ITEMS_KEY: len(rows), FAILURES_KEY: dg.MetadataValue.table(records), **summary},
        allow_retries=False,
    )


def _summary_tags(summary: Mapping[str, float | int | str]) -> dict[str, str]:
    """Run tags with a run's speed and what bounded it: a run's own metadata, to which Dagster gives no other
    place. The log has the whole summary."""
    names = ("items_per_second", "model_busy_share", "bottleneck", "peak_memory_mb", "computing_seconds")
    told = [*names, "planned_seconds"] if "planned_seconds" in summary else names
    return {f"clipfarm/{name}": str(summary[name]) for name in told}


class _ProgressLog:
    """A line in the run's log, at most one in ten seconds."""

    def __init__(self, context: Context, progress: Progress) -> None:
        self._context, self._progress = context, progress
        self._last = datetime.now(UTC)

    def report(self) -> None:
        now = datetime.now(UTC)
        if (now - self._last).total_seconds() >= 10:
            self._last = now
            self._context.log.info(self._progress.line())
