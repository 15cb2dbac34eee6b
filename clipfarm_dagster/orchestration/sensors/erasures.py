"""What a tick does about erased videos, besides its own work."""

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import ErasureError
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.sensors.corpus_sensor import Tick


def following_erasures(tick: Tick) -> Tick:
    """A tick that first does what is left to do of erasures. Where that cannot be done now, it says so and
    goes on, for other videos are waiting."""

    def tick_after(
        context: dg.SensorEvaluationContext, names: CorpusNames, corpus: Corpus
    ) -> dg.SensorResult | dg.SkipReason:
        # much that definitions should not wait for
        from clipfarm_dagster.orchestration.erasure_finishing import (
            erasures_followed,
            finish_erasures_if_free,
        )

        try:
            finished = finish_erasures_if_free(corpus, context.instance, names)
        except ErasureError as error:
            context.log.warning(f"an erasure is not finished: {error}")
        else:
            if finished.waits_for:
                context.log.info(f"an erasure waits for the end of {', '.join(sorted(finished.waits_for))}")
        with erasures_followed(corpus, context.instance, names):
            return tick(context, names, corpus)

    return tick_after
