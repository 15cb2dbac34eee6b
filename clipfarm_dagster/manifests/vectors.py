"""All vectors of a modality or a strategy, in files of this machine, of which each call reads what is new."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.errors import FusionError, ManifestError
from clipfarm_dagster.manifests.fusion import Fusion, FusionPlan
from clipfarm_dagster.manifests.manifest import LEDGER_COLUMNS_READ, Manifest, build_manifest
from clipfarm_dagster.manifests.refresh import complete_manifest, readable_manifest
from clipfarm_dagster.manifests.strategies import Single, Strategy, make_strategy
from clipfarm_dagster.manifests.vector_table import count_vectors, iter_vectors, vectors_of
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.local_copies import LocalFile
from clipfarm_dagster.store.whole_files import written_whole
from clipfarm_dagster.vectors.contract import Contract
from clipfarm_dagster.vectors.matrix import VectorMatrix
from clipfarm_dagster.vectors.npy import VectorProblem
from clipfarm_dagster.vectors.stored import checked_vector

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ModalityVectors:
    """All vectors of a modality under one contract, in a file of this machine."""

    file: LocalFile
    """See `vector_table.iter_vectors`."""
    fusion: Fusion
    """What was done to bring the file up to date."""
    contract: Contract


def modality_vectors(
    corpus: Corpus,
    stage: Stage,
    *,
    generation: str | None = None,
    allow_partial: bool = False,
    allow_none: bool = False,
) -> ModalityVectors:
    """All vectors of a modality that its ledger calls done in the generation that serves, or in another.

    Only vectors that are new since the last call are read. Those that are missing or wrong are left out and
    named in the answer; nothing is recorded. One that is being written over is given as it was published.

    Args:
        generation: contract id of another generation.
        allow_partial: whether that one may lack videos that are served.
        allow_none: whether there may be no vectors at all.

    Raises:
        ManifestError: there are none, some are being written or lost, or the file of the last call is damaged
            among its vectors.
        MetadataError: with a generation: the metadata cannot be read.
        LedgerError: the ledger cannot be read.
        StoreError: the store cannot be read.
    """
    with corpus.stage(stage, generation) as opened:
        if not allow_partial:
            check_covering(corpus, opened)
        contract, manifest = opened.contract, readable_manifest(corpus, opened)
    if not manifest.table.num_rows and not allow_none:
        raise ManifestError(
            f"there are no {stage} vectors of contract {contract.id} yet; `clipfarm plan` shows what there is"
            " to embed, `clipfarm sync` embeds it"
        )
    path = corpus.settings.home_files.vectors(stage, contract.id)
    return ModalityVectors(*_file_of(corpus, path, Single(stage), {stage: manifest}), contract)


def own_vectors(stage: StageCorpus, video_ids: Collection[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The vectors of some videos that `modality_vectors` left on this machine, float32 (dimension,), by
    `video_id`. They may have been replaced since. None where there is no such file, or it is damaged."""
    path = stage.settings.home_files.vectors(stage.stage, stage.contract.id)
    if path.exists():
        with contextlib.suppress(ManifestError):
            return vectors_of(_local_file(path), video_ids)
    return {}


def fused_vectors(
    corpus: Corpus, strategy: str, stage: Stage, generation: str, *, allow_partial: bool = False
) -> tuple[LocalFile, Fusion]:
    """The vectors that a strategy would give if another generation of one stage served, in a file of this
    machine, and what was done to bring it up to date.

    Args:
        generation: contract id of that generation.
        allow_partial: whether it may lack videos that are served.

    Raises:
        FusionError: there is no such strategy, it does not read the stage, or vectors of these dimensions
            cannot be fused.
        ManifestError: vectors are missing, being written or lost, or the file of the last call is damaged
            among its vectors.
        MetadataError: the metadata cannot be read.
        LedgerError: a ledger cannot be read.
        StoreError: the store cannot be read.
    """
    chosen = make_strategy(strategy, corpus.settings.fusion_weights)
    if stage not in chosen.stages:
        raise FusionError(f"the strategy {chosen.name!r} does not read {stage} vectors")
    manifests = {}
    for one in chosen.stages:
        with corpus.stage(one, generation if one == stage else None) as opened:
            if not allow_partial:
                check_covering(corpus, opened)
            manifests[one] = complete_manifest(opened)
    path = corpus.settings.home_files.fused_vectors(chosen.name, generation)
    return _file_of(corpus, path, chosen, manifests)


def check_covering(corpus: Corpus, opened: StageCorpus) -> None:
    """Refuse a generation that lacks videos which are served; the one that serves lacks none.

    Raises:
        ManifestError: it does.
        MetadataError: the metadata cannot be read.
        LedgerError: the ledger cannot be read.
    """
    if opened.serves:
        return
    found = opened.coverage(corpus.latest_rows())
    if found.covered < found.served:
        raise ManifestError(
            f"generation {opened.contract.id} has {found.covered:,} of the {found.served:,} {opened.stage}"
            " vectors that serve; --allow-partial takes it as it is"
        )


def _local_file(path: Path) -> LocalFile:
    return LocalFile(path, str(path), "delete it, and it is made anew")


def _file_of(
    corpus: Corpus, path: Path, strategy: Strategy, manifests: Mapping[Stage, Manifest]
) -> tuple[LocalFile, Fusion]:
    """Bring a file of this machine up to date with manifests, reading only what is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _local_file(path)
    with closing(FusionPlan(strategy, manifests, file if path.exists() else None)) as plan:
        if plan.unchanged:
            return file, plan.kept()
        with written_whole(path) as output:
            return file, plan.write(corpus.store, output)


def read_vectors(
    corpus: Corpus,
    stage: Stage,
    video_ids: Collection[str] | None = None,
    *,
    generation: str | None = None,
) -> VectorMatrix:
    """The vectors of a stage that are done in the generation that serves, or in another, in memory.

    Args:
        video_ids: the videos to read, straight from the store; those without such a vector are left out, and
            named as that. By default all are given, of which only new ones are read.
        generation: contract id of another generation, which may lack some videos.

    Raises:
        ManifestError: vectors are being written or were found lost, they differ in dimension, or this
            machine's file of them is damaged.
        LedgerError: the ledger cannot be read.
        StoreError: the store cannot be read.
    """
    import numpy as np

    if video_ids is not None:
        return _read_some(corpus, stage, video_ids, generation)
    found = modality_vectors(corpus, stage, generation=generation, allow_partial=True, allow_none=True)
    _, dimension = count_vectors(found.file)
    ids: list[str] = []
    parts = [np.empty((0, dimension), np.float32)]
    for some, vectors in iter_vectors(found.file):
        ids += some
        parts.append(vectors)
    left_out = {dropped.video_id: dropped.problem for dropped in found.fusion.dropped}
    return VectorMatrix(ids, np.concatenate(parts), left_out)


def _read_some(
    corpus: Corpus, stage: Stage, video_ids: Collection[str], generation: str | None
) -> VectorMatrix:
    import numpy as np
    import pyarrow as pa

    with corpus.stage(stage, generation) as opened:
        rows = opened.ledger.rows(video_ids).values()
        kinds = {name: pa.string() for name in LEDGER_COLUMNS_READ} | {"embedding_dim": pa.int64()}
        claims = pa.Table.from_pylist([asdict(row) for row in rows], pa.schema(list(kinds.items())))
        manifest = build_manifest(opened.contract, claims, corpus.keys)
    table, dimension = manifest.table, manifest.dimension or 0
    columns = (table[name].to_pylist() for name in ("video_id", "embedding_key", "artifact_sha256"))
    vectors = np.empty((table.num_rows, dimension), np.float32)
    left_out = dict.fromkeys(video_ids, f"it has none under contract {opened.contract.id}")
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
