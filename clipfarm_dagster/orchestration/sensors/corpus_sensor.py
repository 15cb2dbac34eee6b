"""What the sensors of a corpus have in common: they are off at first, and try again what cannot be read."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import ClipFarmError
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.resources.taking import CORPUS, take_corpus

if TYPE_CHECKING:
    from clipfarm_dagster.orchestration.dagster_internals import UnresolvedAssetJobDefinition

Tick: TypeAlias = Callable[
    [dg.SensorEvaluationContext, CorpusNames, Corpus], "dg.SensorResult | dg.SkipReason"
]


def corpus_sensor(
    names: CorpusNames,
    name: str,
    tick: Tick,
    *,
    jobs: "Sequence[dg.JobDefinition | UnresolvedAssetJobDefinition]",
    interval_seconds: int,
    description: str,
) -> dg.SensorDefinition:
    """A sensor that runs `tick` over a corpus and launches some jobs.

    A tick that meets a metadata file, ledger or store that cannot be read changes nothing and is tried again.
    """

    @dg.sensor(
        name=name,
        jobs=jobs,
        minimum_interval_seconds=interval_seconds,
        default_status=dg.DefaultSensorStatus.STOPPED,
        required_resource_keys=names.resources(*CORPUS),
        description=description,
    )
    def sensor(
        context: dg.SensorEvaluationContext,
        **_resources: object,  # by name, where Python and not Dagster calls the sensor
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            return tick(context, names, take_corpus(context.resources, names))
        except ClipFarmError as error:
            raise dg.Failure(f"{error}. The next tick tries again.") from error

    return sensor
