"""How other assets take vectors as inputs: by the IO manager of ClipFarm's assets, which stores nothing."""

from typing import Any

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import ClipFarmError, VideoNotFoundError
from clipfarm_dagster.manifests.vectors import read_vectors
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.resources.taking import CORPUS, take_corpus
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.matrix import VectorMatrix

_NAMED = 3


def vectors_io_manager(names: CorpusNames) -> dg.IOManagerDefinition:
    """The IO manager of a corpus's assets.

    An asset with the same partitions that takes an embedding asset as an input gets, in a run of one
    partition, that video's vector: a NumPy array, float32 (dimension,). In all other runs it gets the vectors
    of all partitions that the input has, as a `VectorMatrix`, and so it does for a parameter with that
    annotation. An asset without partitions gets the matrix of all vectors that are done.

    Each vector is compared with the SHA-256 that its ledger recorded. A run fails if one is missing or is
    another, or if a partition of its input has none; the error names the video.
    """

    @dg.io_manager(required_resource_keys=names.resources(*CORPUS))
    def manager(context: dg.InitResourceContext) -> dg.IOManager:
        return _VectorsIOManager(names, context.resources)

    return manager


class _VectorsIOManager(dg.IOManager):
    def __init__(self, names: CorpusNames, resources: Any) -> None:
        self._names, self._resources = names, resources
        self._stages = {names.embedding(stage): stage for stage in Stage}

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        raise ClipFarmError(
            f"{'/'.join(context.get_identifier())}: this IO manager only loads ClipFarm's vectors; give the"
            " output another io_manager_key"
        )

    def load_input(self, context: dg.InputContext) -> Any:
        stage = self._stages.get(context.asset_key)
        if stage is None:
            raise ClipFarmError(
                f"{context.asset_key.to_user_string()} cannot be loaded as an input, only embeddings can:"
                " name it in `deps`, and read its file from the store"
            )
        corpus = take_corpus(self._resources, self._names)
        wanted = list(context.asset_partition_keys)
        if context.has_partition_key and context.dagster_type.typing_type is not VectorMatrix:
            return _matrix(corpus, stage, [context.asset_partition_key]).vectors[0]
        known = context.instance.get_dynamic_partitions(self._names.partitions_name)
        return _matrix(corpus, stage, None if set(known) <= set(wanted) else wanted)


def _matrix(corpus: Corpus, stage: Stage, video_ids: list[str] | None) -> VectorMatrix:
    """The vectors of some videos, or of all that are done; nothing is left out."""
    matrix = read_vectors(corpus, stage, video_ids)
    if matrix.left_out:  # a run may have overwritten vectors since the ledger was read
        matrix = read_vectors(corpus, stage, video_ids)
    if matrix.left_out:
        named = "; ".join(f"{video_id!r}: {why}" for video_id, why in list(matrix.left_out.items())[:_NAMED])
        raise VideoNotFoundError(
            f"no {stage} vector of {len(matrix.left_out)} videos: {named}. `clipfarm plan --explain VIDEO_ID`"
            " says why a video has none; `clipfarm verify --repair` queues missing and wrong vectors"
        )
    return matrix
