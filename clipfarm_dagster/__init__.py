"""ClipFarm: keeps the video, audio and text embeddings of short videos up to date, as Dagster assets.

The names below are for notebooks and other people's code. They are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipfarm_dagster.corpus import Corpus, StageCorpus
    from clipfarm_dagster.definitions import build_definitions
    from clipfarm_dagster.engine.own_file import embed_file
    from clipfarm_dagster.errors import ClipFarmError
    from clipfarm_dagster.explore.search import Match, search
    from clipfarm_dagster.manifests.vectors import read_vectors
    from clipfarm_dagster.planning.delta import StagePlan
    from clipfarm_dagster.planning.explain import Explanation
    from clipfarm_dagster.settings import Settings, load_settings
    from clipfarm_dagster.stages import Stage
    from clipfarm_dagster.vectors.contract import Contract
    from clipfarm_dagster.vectors.matrix import VectorMatrix

__all__ = [
    "ClipFarmError",
    "Contract",
    "Corpus",
    "Explanation",
    "Match",
    "Settings",
    "Stage",
    "StageCorpus",
    "StagePlan",
    "VectorMatrix",
    "build_definitions",
    "embed_file",
    "load_settings",
    "read_vectors",
    "search",
]

_MODULES = {
    "ClipFarmError": "errors",
    "Contract": "vectors.contract",
    "Corpus": "corpus",
    "Explanation": "planning.explain",
    "Match": "explore.search",
    "Settings": "settings",
    "Stage": "stages",
    "StageCorpus": "corpus",
    "StagePlan": "planning.delta",
    "VectorMatrix": "vectors.matrix",
    "build_definitions": "definitions",
    "embed_file": "engine.own_file",
    "load_settings": "settings",
    "read_vectors": "manifests.vectors",
    "search": "explore.search",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
