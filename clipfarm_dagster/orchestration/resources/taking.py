"""What the code of assets, jobs and sensors takes from a Dagster context's resources, by a corpus's names."""

from typing import Any

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.orchestration.names import CorpusNames, Resource
from clipfarm_dagster.orchestration.progress import ProgressListener
from clipfarm_dagster.orchestration.resources.encoders import EncodersResource
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource
from clipfarm_dagster.orchestration.resources.stage_state import StageStateResource

CORPUS = (Resource.OBJECT_STORE, Resource.STAGE_STATE)
"""What `take_corpus` needs."""


def take_corpus(resources: Any, names: CorpusNames) -> Corpus:
    """The corpus.

    Raises:
        SettingsError: a setting is unusable.
        StoreError: a folder cannot be created.
    """
    store: ObjectStoreResource = getattr(resources, names.resource(Resource.OBJECT_STORE))
    state: StageStateResource = getattr(resources, names.resource(Resource.STAGE_STATE))
    return state.corpus(store)


def take_encoders(resources: Any, names: CorpusNames) -> EncodersResource:
    """The models."""
    encoders: EncodersResource = getattr(resources, names.resource(Resource.ENCODERS))
    return encoders


def take_listener(resources: Any, names: CorpusNames) -> ProgressListener:
    """Who is told of progress."""
    listener: ProgressListener = getattr(resources, names.resource(Resource.PROGRESS))
    return listener
