"""What a run does that erases videos."""

import json

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.orchestration.erasure_finishing import begin_erasure, finish_erasures_if_free
from clipfarm_dagster.orchestration.erasure_looking import find_holdings
from clipfarm_dagster.orchestration.names import CorpusNames
from clipfarm_dagster.orchestration.runs.id_list import ErasureList
from clipfarm_dagster.store.keys import check_video_id


def erase_in_run(
    context: dg.OpExecutionContext, names: CorpusNames, config: ErasureList, corpus: Corpus
) -> None:
    """Erase videos in a running step; what it logs names no video.

    The run itself has their ids, and other runs may have them in hand: the next tick or sync does the rest.

    Raises:
        ErasureError: a database is in use; the next tick or sync tries again.
        ManifestError: a manifest is replaced each time that it was read.
        LedgerError: a ledger cannot be used, or the list of erased videos is damaged.
        StoreError: the store cannot be used.
    """
    before = corpus.tombstones.read().erasures
    # a run that is executed again has the tombstones that took the place of ids
    ids = [check_video_id(one) for one in dict.fromkeys(config.video_ids) if one not in before]
    there = find_holdings(corpus, context.instance, names, ids, raw=config.raw)
    context.log.info(f"{len(ids)} videos: {json.dumps(there.to_dict())}")
    begin_erasure(corpus, ids, raw=config.raw)
    finish_erasures_if_free(corpus, context.instance, names, own_run=context.run.run_id)
    context.log.info(
        "removed; what this run, and others at work, still have goes with the sensor's next tick, or the next"
        " `clipfarm sync`, after their end. Then `clipfarm erase --check` proves it"
    )
