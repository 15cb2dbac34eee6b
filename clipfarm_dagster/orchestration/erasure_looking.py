"""What there is of some videos, and what is left after an erasure: looks everywhere, and changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import ErasureError, MetadataError
from clipfarm_dagster.maintenance.certificate import ALWAYS_OUT_OF_REACH, Holdings, Left
from clipfarm_dagster.maintenance.erasure import look
from clipfarm_dagster.maintenance.erasure_scan import scan_csv, scan_home, scan_ledgers, scan_store
from clipfarm_dagster.maintenance.id_text import IdText, is_word
from clipfarm_dagster.maintenance.scanning import Trace
from clipfarm_dagster.orchestration.erasing import check_known, erase_from_dagster, is_known, scan_dagster
from clipfarm_dagster.orchestration.erasing.files import instance_folders, out_of_reach
from clipfarm_dagster.orchestration.erasure_finishing import not_dagsters
from clipfarm_dagster.orchestration.names import CorpusNames


def find_holdings(
    corpus: Corpus, instance: dg.DagsterInstance, names: CorpusNames, video_ids: Collection[str], *, raw: bool
) -> Holdings:
    """What there is of some videos in store, ledgers and Dagster.

    Args:
        raw: whether raw objects count.

    Raises:
        ErasureError: a database cannot be used.
        ManifestError: a manifest is replaced each time that it was read.
        LedgerError: a ledger cannot be read.
        StoreError: the store cannot be read.
    """
    raw_too = video_ids if raw else ()
    if not is_known(instance):
        return Holdings(look(corpus, video_ids, raw=raw_too), {})
    shown = _shown(corpus, video_ids)
    with ThreadPoolExecutor(1, thread_name_prefix="look") as beside:
        looking = beside.submit(look, corpus, video_ids, raw=raw_too)
        planned = erase_from_dagster(instance, names, shown, besides=not_dagsters(corpus), dry_run=True)
        found = looking.result()
    counts = {name: value for name, value in asdict(planned).items() if name != "out_of_reach"}
    return Holdings(found, {name: value for name, value in counts.items() if value})


def look_for(
    corpus: Corpus, instance: dg.DagsterInstance, names: CorpusNames, video_ids: Collection[str], *, raw: bool
) -> Left:
    """Look for some videos everywhere, byte for byte. Ids that are words are looked for only where ids are
    kept as such. Raises what `find_holdings` raises.

    Args:
        raw: whether raw objects count.
    """
    shown = {i: text for i, text in _shown(corpus, video_ids).items() if not is_word(i)}
    ids = IdText(shown, _others(corpus, instance, names).difference(video_ids))
    # the store answers, and files and databases are read, while others are searched
    with ThreadPoolExecutor(3, thread_name_prefix="look") as beside:
        found = beside.submit(find_holdings, corpus, instance, names, video_ids, raw=raw)
        in_store = beside.submit(scan_store, corpus, ids)
        at_home = beside.submit(scan_home, corpus, ids, besides=instance_folders(instance))
        of_dagster, refused_there = _scan_dagster(corpus, instance, list(shown))
        traces, refused = in_store.result()
        traces += at_home.result()
        holdings = found.result()
    traces += [*scan_ledgers(corpus, ids), *of_dagster]
    refused += refused_there
    return Left(
        holdings,
        traces,
        len(set(video_ids) - shown.keys()),
        refused,
        [*scan_csv(corpus, video_ids), *ALWAYS_OUT_OF_REACH],
    )


def _scan_dagster(
    corpus: Corpus, instance: dg.DagsterInstance, video_ids: Collection[str]
) -> tuple[list[Trace], list[str]]:
    """What is left in Dagster, and what could not be looked at."""
    try:
        check_known(instance)
    except ErasureError as error:
        return [], [f"Dagster: {error}"]
    left = scan_dagster(instance, video_ids, besides=not_dagsters(corpus))
    return left, list(out_of_reach(instance))


def _shown(corpus: Corpus, video_ids: Collection[str]) -> dict[str, str]:
    """What stands for each video."""
    erased = corpus.tombstones.read()
    return {video_id: erased.tombstone(video_id) if erased else "…" for video_id in video_ids}


def _others(corpus: Corpus, instance: dg.DagsterInstance, names: CorpusNames) -> set[str]:
    """Ids of other videos, in which one of these may stand."""
    others = set(instance.get_dynamic_partitions(names.partitions_name))
    with contextlib.suppress(MetadataError):  # the partitions are nearly as many
        others.update(corpus.latest_rows().video_ids())
    return others
