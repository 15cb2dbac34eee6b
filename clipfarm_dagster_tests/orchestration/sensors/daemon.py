"""Ticks of the embedding sensor, as Dagster's daemon evaluates it."""

from __future__ import annotations

from typing import Any

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import defs
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.runs.id_list import id_list
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript
from clipfarm_dagster_tests.support.runs import create_run


class Daemon:
    """Evaluates the sensor as Dagster's daemon does, keeping its cursor."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None
        self.skip: str | None = None

    def tick(self) -> list[dg.RunRequest]:
        definitions = defs
        sensor = definitions.resolve_sensor_def(DEFAULT_NAMES.embedding_sensor)
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, resources=definitions.resources
        ) as context:
            result = sensor(context)
            if isinstance(result, dg.SensorResult):
                self.cursor, self.skip = result.cursor, None
                return list(result.run_requests or [])
            assert isinstance(result, dg.SkipReason)
            self.cursor, self.skip = context.cursor, result.skip_message
            return []

    def create_runs(self, requests: list[Any], status: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
        """Runs of what was requested, that wait or are under way somewhere."""
        return [
            create_run(
                self.instance, request.job_name, status, run_config=request.run_config, tags=request.tags
            )
            for request in requests
        ]

    def run(self, requests: list[dg.RunRequest]) -> list[dg.ExecuteInProcessResult]:
        return [
            defs.resolve_job_def(request.job_name or "").execute_in_process(
                instance=self.instance,
                run_config=request.run_config,
                tags=request.tags,
                raise_on_error=False,
            )
            for request in requests
        ]


def requested(requests: list[dg.RunRequest]) -> dict[str, list[str]]:
    return {
        str(stage): id_list(DEFAULT_NAMES, stage, request.run_config)
        for request in requests
        for stage in Stage
        if request.job_name == DEFAULT_NAMES.embedding_job(stage)
    }


def put_texts(corpus: Corpus, *video_ids: str, **row: Any) -> None:
    put_metadata(corpus, [metadata_row(video_id, **row) for video_id in video_ids])
    for video_id in video_ids:
        put_transcript(corpus, video_id, f"said in {video_id}")
