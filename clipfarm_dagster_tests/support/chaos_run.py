"""One run of the audio stage over what is left to do, through Dagster, as a process that may be killed.

Usage: python -m clipfarm_dagster_tests.support.chaos_run MODEL_LOG
Settings come from the environment. MODEL_LOG gets a byte for each item that has gone through the model.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import build_definitions
from clipfarm_dagster.modalities.encoder import Encoder, Prepared
from clipfarm_dagster.orchestration.in_process import run_in_process
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.resources.encoders import EncodersResource
from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config, id_list_run_tags
from clipfarm_dagster.settings import Settings, load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.faults import FaultyPreparer
from clipfarm_dagster_tests.support.stages import opened


class FaultyEncoders(EncodersResource):
    """The real encoders, with a preparer that breaks where a raw object asks for it."""

    log: str

    def load(self, stage: Stage, settings: Settings) -> Encoder:
        """The encoder of a stage, keeping its log."""
        encoder: Any = super().load(stage, settings)
        if not isinstance(encoder.preparer, FaultyPreparer):
            encoder.preparer, encode = FaultyPreparer(encoder.preparer), encoder.encode
            log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

            def logged(batch: Sequence[Prepared]) -> Any:
                vectors = encode(batch)
                if threading.current_thread().name.startswith("model"):  # and not for the canary
                    os.write(log, b"." * len(batch))
                return vectors

            encoder.encode = logged
        return encoder  # type: ignore[no-any-return]


def main() -> None:
    """Plan, and run the delta."""
    corpus = Corpus.open(load_settings())
    with corpus.ledger(Stage.AUDIO) as ledger:
        plan = opened(corpus, ledger).plan(corpus.latest_rows())
        opened(corpus, ledger).record_settled(plan)
    ids = plan.work["video_id"].to_pylist()
    if not ids:
        return
    definitions = build_definitions(resource_overrides={"encoders": FaultyEncoders(log=sys.argv[1])})
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, ids)
        run_in_process(
            definitions.resolve_job_def(DEFAULT_NAMES.embedding_job(Stage.AUDIO)),
            instance,
            id_list_run_config(DEFAULT_NAMES, Stage.AUDIO, ids),
            id_list_run_tags(DEFAULT_NAMES, Stage.AUDIO, ids),
        )


if __name__ == "__main__":
    main()
