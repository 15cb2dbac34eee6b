"""Vectors that turned out to be missing or wrong become work again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.ledger.verify import lost_row
from clipfarm_dagster.manifests.fusion import Dropped


def record_lost(ledger: Ledger, dropped: Sequence[Dropped], now: datetime) -> list[Dropped]:
    """Say in a stage's ledger that it no longer knows what the store holds for some videos.

    They are in the next delta, as `artifact_lost`. `processed_at` moves on, so that sensor, snapshot and
    other machines notice. Left alone are videos whose row has changed since the manifest was made: a run has
    them in hand, or is done with them, and their vector was only read too early.

    Returns:
        Those that were recorded.
    """
    mine = {lost.video_id: lost for lost in dropped if lost.stage == ledger.stage}
    rows = [
        row
        for row in ledger.rows(mine).values()
        if row.status == Status.SUCCESS
        and row.vector_source_hash is not None
        and row.artifact_sha256 == mine[row.video_id].artifact_sha256
    ]
    recorded = ledger.replace(
        [
            (
                row,
                replace(
                    lost_row(row, now),
                    note=f"its vector was lost ({mine[row.video_id].problem}); it is embedded again",
                ),
            )
            for row in rows
        ]
    )
    return [mine[video_id] for video_id in recorded]
