"""Brings the manifests and the fused vectors of a corpus up to date, in its store or on this machine."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import closing
from dataclasses import asdict, dataclass
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
from clipfarm_dagster.manifests.strategies import Single, Strategy, make_strategy
from clipfarm_dagster.manifests.vector_table import count_vectors, iter_vectors
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.local_copies import LocalCopies, LocalCopy, LocalFile
from clipfarm_dagster.store.whole_files import written_whole
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.matrix import VectorMatrix
from clipfarm_dagster.vectors.npy import VectorProblem
from clipfarm_dagster.vectors.stored import checked_vector

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
    stage.ledger.push()
    manifest = complete_manifest(stage)
    copy, written = write_manifest(manifest, local_copies(stage), stage.keys.manifest(stage.stage))
    return RefreshedManifest(manifest, copy.etag, written)


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
            f"{corpus.store.url}: there is no {key!r}; materialize the partition {strategy!r} of"
            " `fused_manifest`, in Dagster's UI or by the manifest sensor"
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
    stored = {stage: stored_manifest(corpus, stage) for stage in strategy.stages}
    manifests = {stage: manifest for stage, (manifest, _) in stored.items()}
    standing = copies.get(key)
    with closing(FusionPlan(strategy, manifests, standing)) as plan:
        if standing is not None and plan.unchanged:
            fusion, copy = plan.kept(), standing
        else:
            fusion, copy = copies.put(key, partial(plan.write, corpus.store))
    record_dropped(corpus, fusion.dropped)
    return RefreshedFusion(fusion, copy, {stage: etag for stage, (_, etag) in stored.items()})


def record_dropped(corpus: Corpus, dropped: list[Dropped]) -> None:
    """Record vectors that are missing or wrong as lost, each in its stage's ledger."""
    for stage in sorted({lost.stage for lost in dropped if lost.stage is not None}):
        with corpus.ledger(stage) as ledger:
            if record_lost(ledger, dropped, datetime.now(UTC)):
                ledger.push()


@dataclass(frozen=True)
class ModalityVectors:
    """All vectors of a modality under one contract, in a file of this machine."""

    file: LocalFile
    """See `vector_table.iter_vectors`."""
    contract: Contract
    fusion: Fusion
    """What was done to bring the file up to date."""


def modality_vectors(corpus: Corpus, stage: Stage, *, allow_none: bool = False) -> ModalityVectors:
    """All vectors of a modality that its ledger calls done under the contract that the settings ask for.

    Only vectors that are new since the last call are read. Those that are missing or wrong are left out and
    named in the answer; nothing is recorded.

    Args:
        allow_none: whether there may be no vectors at all.

    Raises:
        ManifestError: there are none, some are being written or lost, or the file of the last call is damaged
            among its vectors.
        LedgerError: the ledger cannot be read.
        StoreError: the store cannot be read.
    """
    with corpus.stage(stage) as opened:
        contract, manifest = opened.contract, complete_manifest(opened)
    if not manifest.table.num_rows and not allow_none:
        raise ManifestError(
            f"there are no {stage} vectors of contract {contract.id} yet; `clipfarm plan` shows what there is"
            " to embed, `clipfarm sync` embeds it"
        )
    path = corpus.settings.home_files.vectors(stage, contract.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = LocalFile(path, str(path), "delete it, and it is made anew")
    with closing(FusionPlan(Single(stage), {stage: manifest}, file if path.exists() else None)) as plan:
        if plan.unchanged:
            return ModalityVectors(file, contract, plan.kept())
        with written_whole(path) as output:
            fusion = plan.write(corpus.store, output)
    return ModalityVectors(file, contract, fusion)


def read_vectors(corpus: Corpus, stage: Stage, video_ids: Collection[str] | None = None) -> VectorMatrix:
    """The vectors of a stage that are done under the contract that the settings ask for, in memory.

    Args:
        video_ids: the videos to read, straight from the store; those without such a vector are left out, and
            named as that. By default all are given, of which only new ones are read.

    Raises:
        ManifestError: vectors are being written or were found lost, they differ in dimension, or this
            machine's file of them is damaged.
        LedgerError: the ledger cannot be read.
        StoreError: the store cannot be read.
    """
    import numpy as np

    if video_ids is not None:
        return _read_some(corpus, stage, video_ids)
    found = modality_vectors(corpus, stage, allow_none=True)
    _, dimension = count_vectors(found.file)
    ids: list[str] = []
    parts = [np.empty((0, dimension), np.float32)]
    for some, vectors in iter_vectors(found.file):
        ids += some
        parts.append(vectors)
    left_out = {dropped.video_id: dropped.problem for dropped in found.fusion.dropped}
    return VectorMatrix(ids, np.concatenate(parts), left_out)


def _read_some(corpus: Corpus, stage: Stage, video_ids: Collection[str]) -> VectorMatrix:
    import numpy as np
    import pyarrow as pa

    with corpus.stage(stage) as opened:
        rows = opened.ledger.rows(video_ids).values()
        kinds = {name: pa.string() for name in LEDGER_COLUMNS_READ} | {"embedding_dim": pa.int64()}
        claims = pa.Table.from_pylist([asdict(row) for row in rows], pa.schema(list(kinds.items())))
        manifest = build_manifest(opened.contract, claims, corpus.keys)
    table, dimension = manifest.table, manifest.dimension or 0
    columns = (table[name].to_pylist() for name in ("video_id", "embedding_key", "artifact_sha256"))
    vectors = np.empty((table.num_rows, dimension), np.float32)
    left_out = dict.fromkeys(video_ids, "it has none under the present contract")
    ids: list[str] = []
    answers = corpus.store.get_many(table["embedding_key"].to_pylist())
    for video_id, key, sha256, (_, answer) in zip(*columns, answers, strict=True):
        try:
            vectors[len(ids)] = checked_vector(answer, dimension, sha256)
        except VectorProblem as problem:
            left_out[video_id] = f"{key}: {problem}"
        else:
            ids.append(video_id)
            del left_out[video_id]
    return VectorMatrix(ids, vectors[: len(ids)], left_out)
