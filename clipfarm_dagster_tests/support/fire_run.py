"""Syncs and makes manifests again and again, as a process that is killed at any moment.

Usage: python -m clipfarm_dagster_tests.support.fire_run MODEL_LOG STOP_FILE
Settings come from the environment. MODEL_LOG gets a byte for each item that has gone through a model. The
process ends once there is a STOP_FILE and nothing is left to do.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipfarm_dagster.cli.manifests import make_manifests
from clipfarm_dagster.cli.output import dagster_instance
from clipfarm_dagster.cli.sync import sync_corpus
from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.modalities.encoder import Encoder, Prepared
from clipfarm_dagster.orchestration.resources.encoders import EncodersResource
from clipfarm_dagster.settings import Settings, load_settings
from clipfarm_dagster.stages import Stage

STAGES = list(Stage)


def log_model_calls(path: str) -> None:
    """Write a byte for each item that goes through a model, and not for the canary's."""
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    load, wrapped = EncodersResource.load, set[int]()

    def logged(self: EncodersResource, stage: Stage, settings: Settings) -> Encoder:
        encoder: Any = load(self, stage, settings)
        if id(encoder) in wrapped:
            return encoder  # type: ignore[no-any-return]
        wrapped.add(id(encoder))
        encode = encoder.encode

        def encode_logged(batch: Sequence[Prepared]) -> Any:
            vectors = encode(batch)
            if threading.current_thread().name.startswith("model"):
                os.write(log, b"." * len(batch))
            return vectors

        encoder.encode = encode_logged
        return encoder  # type: ignore[no-any-return]

    EncodersResource.load = logged  # type: ignore[method-assign]


def main() -> None:
    """Sync until it is over."""
    log_model_calls(sys.argv[1])
    stop = Path(sys.argv[2])
    with dagster_instance(load_settings()) as instance:
        while True:
            last = stop.exists()
            corpus = Corpus.open(load_settings())
            done = sync_corpus(corpus, instance, STAGES, quiet=True)
            made = make_manifests(corpus, instance)
            calls = [e["model_calls"] for e in (*done.stages.values(), *done.candidates.values())]
            if last and not sum(calls) and not any(entry["written"] for entry in made):
                return


if __name__ == "__main__":
    main()
