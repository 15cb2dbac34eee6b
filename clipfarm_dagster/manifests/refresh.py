"""Brings the manifests and the fused vectors of a corpus up to date, in its store or on this machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.errors import ManifestError
from clipfarm_dagster.manifests.fusion import Dropped, Fusion, FusionPlan
from clipfarm_dagster.manifests.lost import record_lost
from clipfarm_dagster.manifests.manifest import (
    LEDGER_COLUMNS_READ,
    Manifest,
    build_manifest,
    incomplete,
    read_manifest,
    write_manifest,
)
from clipfarm_dagster.manifests.strategies import Strategy, make_strategy
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.local_copies import LocalCopies, LocalCopy

PATIENCE_SECONDS = 10.0
"""How long a manifest waits for vectors that are being written over."""


def local_copies(corpus: Corpus | StageCorpus) -> LocalCopies:
    """This machine's copies of the store's manifests."""
    return LocalCopies(corpus.store, corpus.settings.home_files.manifests_cache)


def current_manifest(stage: StageCorpus) -> Manifest:
    """A modality's manifest as its ledger gives it now."""
    return build_manifest(stage.contract, stage.ledger.columns(LEDGER_COLUMNS_READ), stage.keys)


def complete_manifest(stage: StageCorpus) -> Manifest:
    """A modality's manifest with a row for every success.

    A vector that is being written over is unknown for a moment, so that this waits for a while.

    Raises:
        ManifestError: some vectors stay unknown.
        LedgerError: the ledger cannot be read.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        rows = stage.ledger.columns(LEDGER_COLUMNS_READ)
        missing = incomplete(stage.contract, rows)
        if not missing:
            return build_manifest(stage.contract, rows, stage.keys)
        if time.monotonic() > deadline:
            raise ManifestError(
                f"{len(missing)} {stage.stage} vectors that are recorded as done are being written or were"
                f" found lost, such as {', '.join(missing[:3])}; what was made before stays as it is. Run"
                " `clipfarm sync`, or wait for the runs that have them in hand"
            )
        time.sleep(0.2)


def readable_manifest(corpus: Corpus, stage: StageCorpus) -> Manifest:
    """A modality's manifest with a row for every success, for those who only read.

    A vector that is being written over is taken as it was published last, so that nobody waits for whoever
    writes it, who may have been killed. What was never published is waited for, as by `complete_manifest`.

    Raises:
        ManifestError: some vectors stay unknown.
        LedgerError: the ledger cannot be read.
        StoreError: the store cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = stage.ledger.columns(LEDGER_COLUMNS_READ)
    unknown = incomplete(stage.contract, rows)
    if unknown and stage.serves:
        with contextlib.suppress(ManifestError):
            published, _ = stored_manifest(corpus, stage.stage)
            before = published.table.filter(pc.is_in(published.table["video_id"], pa.array(unknown)))
            if published.contract == stage.contract and before.num_rows == len(unknown):
                known = build_manifest(stage.contract, rows, stage.keys).table
                return Manifest(stage.contract, pa.concat_tables([known, before]).sort_by("video_id"))
    return complete_manifest(stage)


@dataclass(frozen=True)
class RefreshedManifest:
    """A modality's manifest that is up to date in the store."""

    manifest: Manifest
    etag: str
    written: bool
    """Whether it had to be written."""


def refresh_manifest(stage: StageCorpus) -> RefreshedManifest:
    """Bring a modality's manifest in the store up to date with its ledger.

    What this machine has recorded and not told the others, as after a crash, is sent first: the manifest
    holds what all of them know. A manifest is never replaced by one with fewer rows than there are successes.

    Raises:
        ManifestError: vectors are being written or were found lost, and stay so for a while.
        StoreError: the store cannot be read or written.
        LedgerError: the ledger cannot be read or sent.
    """
    before_erasure: list[LocalCopy] = []
    while True:
        erased = stage.ledger.follow_erasures()
        stage.ledger.push()
        manifest = complete_manifest(stage)
        copy, written = write_manifest(manifest, local_copies(stage), stage.keys.manifest(stage.stage))
        if stage.ledger.follow_erasures().version == erased.version:
            _remove(before_erasure)
            return RefreshedManifest(manifest, copy.etag, written)
        # what was erased meanwhile was taken out before this was written, perhaps, and is in it again
        before_erasure.append(copy)


def _remove(copies: Sequence[LocalCopy]) -> None:
    for copy in copies:
        copy.path.unlink(missing_ok=True)


def stored_manifest(corpus: Corpus, stage: Stage) -> tuple[Manifest, str]:
    """A modality's manifest as the store has it, and its ETag.

    Raises:
        ManifestError: there is none, or it cannot be read.
    """
    key = corpus.keys.manifest(stage)
    copy = local_copies(corpus).get(key)
    if copy is None:
        raise ManifestError(f"{corpus.store.url}: there is no {key!r}; materialize `{stage}_manifest`")
    return read_manifest(copy), copy.etag


def fused_file(corpus: Corpus, strategy: str) -> LocalCopy:
    """A local copy of a strategy's fused manifest.

    Raises:
        ManifestError: there is none in the store.
    """
    strategy = make_strategy(strategy, corpus.settings.fusion_weights).name
    key = corpus.keys.fused_manifest(strategy)
    copy = local_copies(corpus).get(key)
    if copy is None:
        raise ManifestError(
            f"{corpus.store.url}: there is no {key!r}; run `clipfarm manifests`, or materialize the partition"
            f" {strategy!r} of `fused_manifest` in Dagster's UI"
        )
    return copy


@dataclass(frozen=True)
class RefreshedFusion:
    """A strategy's fused manifest that is up to date in the store."""

    fusion: Fusion
    copy: LocalCopy
    manifest_etags: dict[Stage, str]
    """The manifests that it was made of."""


def refresh_fused(corpus: Corpus, strategy: Strategy) -> RefreshedFusion:
    """Bring a strategy's fused manifest in the store up to date with the manifests there.

    Vectors that are missing or wrong are recorded in the ledgers as lost, so that they become work.

    Raises:
        ManifestError: a manifest is missing, or one or the fused vectors are damaged.
        FusionError: vectors of these dimensions cannot be fused.
        StoreError: the store cannot be read or written.
        LedgerError: a ledger cannot be written.
    """
    copies, key = local_copies(corpus), corpus.keys.fused_manifest(strategy.name)
    before_erasure: list[LocalCopy] = []
    while True:
        erased = corpus.tombstones.read()
        stored = {stage: stored_manifest(corpus, stage) for stage in strategy.stages}
        manifests = {stage: manifest for stage, (manifest, _) in stored.items()}
        standing = copies.get(key)
        with closing(FusionPlan(strategy, manifests, standing)) as plan:
            if standing is not None and plan.unchanged:
                fusion, copy = plan.kept(), standing
            else:
                fusion, copy = copies.put(key, partial(plan.write, corpus.store))
        record_dropped(corpus, fusion.dropped)
        if corpus.tombstones.read().version == erased.version:  # as with `refresh_manifest`
            _remove(before_erasure)
            return RefreshedFusion(fusion, copy, {stage: etag for stage, (_, etag) in stored.items()})
        before_erasure.append(copy)


def record_dropped(corpus: Corpus, dropped: list[Dropped]) -> None:
    """Record vectors that are missing or wrong as lost, each in its stage's ledger."""
    for stage in sorted({lost.stage for lost in dropped if lost.stage is not None}):
        with corpus.ledger(stage) as ledger:
            if record_lost(ledger, dropped, datetime.now(UTC)):
                ledger.push()
