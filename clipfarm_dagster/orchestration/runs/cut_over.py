"""What a run does that lets another generation serve."""

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.maintenance.readiness import cut_over_when_ready
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.reconcile import reconcile
from clipfarm_dagster.orchestration.runs.embed import breakage_tagged
from clipfarm_dagster.stages import Stage


def run_cut_over(context: dg.OpExecutionContext, names: CorpusNames, stage: Stage, corpus: Corpus) -> None:
    """Let a stage's candidate serve if it has all vectors, finish a cut-over that was begun, and tell Dagster
    of the vectors that serve.

    Raises:
        ClipFarmError: the cut-over could not be made; it goes on when it is called again.
    """
    with breakage_tagged(context):
        found = cut_over_when_ready(corpus, stage)
        if found is not None and not found.ready:
            why = "; ".join([*found.missing, *found.held])
            context.log.info(f"{stage}: contract {found.contract_id} does not serve yet: {why}")
        done = reconcile(corpus, context.instance, names, stage)
    serving = corpus.serving.read().get(stage)
    context.log.info(
        f"{stage}: contract {serving.contract_id if serving else '-'} serves {done.successes} videos;"
        f" Dagster was told of {done.mended}"
    )
