"""One run of the audio stage over what is left to do, through Dagster, as a process that may be killed.

Usage: python -m clipfarm_dagster_tests.support.chaos_run MODEL_LOG
Settings come from the environment. MODEL_LOG gets a byte for each item that has gone through the model.
"""

from __future__ import annotations

import sys

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import build_definitions
from clipfarm_dagster.orchestration.in_process import run_in_process
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config, id_list_run_tags
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.faulty_encoders import FaultyEncoders
from clipfarm_dagster_tests.support.stages import opened


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
