"""How other assets take vectors as inputs: by the IO manager of ClipFarm's assets, which stores nothing."""

from typing import Any

import dagster as dg

from clipfarm_dagster.errors import ClipFarmError, VideoNotFoundError
from clipfarm_dagster.manifests.stage_vectors import StageVectors, read_vector, read_vectors
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.resources.taking import CORPUS, take_corpus
from clipfarm_dagster.stages import Stage


def vectors_io_manager(names: CorpusNames) -> dg.IOManagerDefinition:
    """The IO manager of a corpus's assets.

    An asset that takes an embedding asset as an input gets, with the same partitions and in a run of one
    partition, that video's vector: a NumPy array, float32 (dimension,). In all other runs it gets the vectors
    that are done of all partitions that the input has, as `StageVectors`; an asset without partitions so gets
    all. A parameter that is annotated as `StageVectors` gets them in any case.
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
            f"{context.get_identifier()}: ClipFarm's assets store what they make themselves; give this output"
            " another io_manager_key"
        )

    def load_input(self, context: dg.InputContext) -> Any:
        stage = self._stages.get(context.asset_key)
        if stage is None:
            raise ClipFarmError(
                f"{context.asset_key.to_user_string()} cannot be an input: only embeddings can. Name it in"
                " `deps`, and read its file from the store"
            )
        corpus, video_ids = take_corpus(self._resources, self._names), context.asset_partition_keys
        if context.dagster_type.typing_type is StageVectors or not context.has_partition_key:
            return read_vectors(corpus, stage, video_ids)
        try:
            return read_vector(corpus, stage, context.asset_partition_key)
        except VideoNotFoundError as error:
            key = context.asset_key.to_user_string()
            raise VideoNotFoundError(
                f"{error}; once it has one, materialize its partition of {key}"
            ) from None
