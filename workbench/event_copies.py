"""Copies of the events that ClipFarm writes into Dagster's SQLite files, for benchmarks with many videos."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import dagster as dg


def copy_events(
    instance: dg.DagsterInstance,
    asset: dg.AssetKey,
    told_of: str,
    video_ids: Sequence[str],
    run_id: str,
    *,
    of_run: bool = True,
) -> None:
    """Copy the event of one video, and its tags, to others: in the index, and in the file of a run.

    Args:
        of_run: whether to write the file of the run.
    """
    folder = Path(instance.root_directory) / "history" / "runs"
    with closing(sqlite3.connect(folder / "index.db")) as index:
        query = "SELECT * FROM event_logs WHERE asset_key = ? AND partition = ? ORDER BY id LIMIT 1"
        event_id, _, *event = index.execute(query, (asset.to_string(), told_of)).fetchone()
        query = "SELECT asset_key, key, value, event_timestamp FROM asset_event_tags WHERE event_id = ?"
        tags = index.execute(query, (event_id,)).fetchall()
        (last,) = index.execute("SELECT max(id) FROM event_logs").fetchone()
        body, *rest = event
        rows = [
            (
                last + number,
                run_id,
                body.replace(f'"{told_of}"', f'"{video_id}"')
                .replace(f"/{told_of}.", f"/{video_id}.")
                .replace('"run_id": ""', f'"run_id": "{run_id}"'),
                *rest[:-1],
                video_id,
            )
            for number, video_id in enumerate(video_ids, 1)
            if video_id != told_of
        ]
        places = ",".join("?" * len(rows[0]))
        index.executemany(f"INSERT INTO event_logs VALUES ({places})", rows)
        columns = "event_id, asset_key, key, value, event_timestamp"
        index.executemany(
            f"INSERT INTO asset_event_tags ({columns}) VALUES (?, ?, ?, ?, ?)",
            [(row[0], *tag) for row in rows for tag in tags],
        )
        index.commit()
    if of_run:
        events: object = instance.event_log_storage
        with events.run_connection(run_id):  # type: ignore[attr-defined]
            pass
        with closing(sqlite3.connect(folder / f"{run_id}.db")) as shard:
            shard.executemany(f"INSERT INTO event_logs VALUES ({places})", rows)
            shard.commit()
