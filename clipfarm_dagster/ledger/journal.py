"""How the SQLite ledgers of several machines stay one: a log in the store, and its snapshot.

    <stage>_embedding.sqlite                        snapshot: all rows up to a number of the log
    <stage>_embedding.journal/head.json             which segments follow; replaced by conditional puts
    <stage>_embedding.journal/<number>-….jsonl.gz   a segment: rows that one machine wrote

All generations of a stage share the log; each row in it names its own. `send` appends the rows that were
written here since. Whoever finds that the head has moved takes in what others have appended (`take_in`), and
tries again: so all machines see one order, and no clock has a say. When segments hold more than a tenth of
all rows, the snapshot is made anew and they are removed.

A snapshot may hold rows that are not in the log yet. They do no harm: whoever writes such a row finds by its
version that somebody else has written it too.

Rows of erased videos are neither sent nor taken in (see `erasing`): it is asked each time.
Whoever erases then makes the snapshot anew. That changes the head, so nobody can add what was read before.
Where a machine of an earlier version sends such rows, whoever meets them takes their erasure up again.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipfarm_dagster.errors import LedgerError, PreconditionFailedError
from clipfarm_dagster.ledger.generations import count_rows
from clipfarm_dagster.ledger.log import (
    ATTEMPTS,
    Head,
    Position,
    Segment,
    open_database,
)
from clipfarm_dagster.ledger.log_reading import LogReader
from clipfarm_dagster.ledger.schema import UNNAMED
from clipfarm_dagster.ledger.unsent import (
    SentRow,
    dropped_generations,
    has_unsent,
    note_sent,
    unsent_rows,
)

_SNAPSHOT_SHARE = 10
"""The snapshot is made anew when segments hold more than one in so many rows."""
_SEGMENT_ROWS = 20_000


class Journal(LogReader):
    """One machine's end of a stage's log.

    Args:
        prove: called where the log is lost: has to compare the vectors that the ledger claims with the store,
            since nobody knows any more what others have overwritten.
    """

    def push(self) -> bool:
        """`send`, and then make the snapshot anew if it is due; tells whether there was anything to send.

        Raises:
            StoreError: the store cannot be read or written.
            LedgerError: as from `send`.
        """
        with self._lock:
            sent = self.send()
            if sent:
                self._compact()
        return sent

    def send(self) -> bool:
        """Append what was written here since the last time; tells whether there was anything.

        Raises:
            StoreError: the store cannot be read or written.
            LedgerError: others keep winning the race, or the ledger cannot be copied or written.
        """
        with self._lock:
            for _ in range(ATTEMPTS):
                with self._connect() as connection:
                    if not has_unsent(connection):
                        return False
                uploaded: list[str] = []
                try:
                    return self._append(self._position(), uploaded)
                except PreconditionFailedError:
                    self._take_in()
                    self._remove_unnamed(uploaded)
        raise LedgerError(
            f"the {self._ledger.stage} ledger in the store, {self._keys.head!r}, changed {ATTEMPTS} times"
            " while this machine's rows were being added; nothing is lost, the next run adds them"
        )

    def rewrite(self) -> None:
        """Make the snapshot anew, whether or not that is due, and remove all else but what others are adding:
        copies of damaged parts too, and what a process that was killed has left there.

        Raises:
            StoreError: the store cannot be read or written.
            LedgerError: as from `send`.
        """
        with self._lock:
            for _ in range(ATTEMPTS):
                self.send()
                if self._store.head(self._keys.snapshot) is None and not self._listed():
                    return
                with contextlib.suppress(PreconditionFailedError):
                    if self._make_snapshot(everything=True) and not self._met_erased:
                        return
                self._take_in()
        raise LedgerError(
            f"the {self._ledger.stage} ledger in the store, {self._keys.head!r}, changed {ATTEMPTS} times"
            " while it was being made anew; nothing is lost, repeat"
        )

    # writing it

    def _append(self, position: Position, uploaded: list[str]) -> bool:
        """Upload what is to be sent, and name it in the head; `uploaded` is told the keys as it goes."""
        self._ledger.follow_erasures()
        if position.lost is not None and self._store.head(position.lost) is not None:
            name = position.lost.rpartition("/")[2]
            self._store.copy(position.lost, f"{self._damaged}{name}")
        head = self._base(position)
        with self._connect() as connection:
            connection.execute("BEGIN")
            contracts, rows, dropped = *unsent_rows(connection), dropped_generations(connection)
        if not rows and not dropped:  # all were of videos that are erased now
            return False
        numbers = itertools.count(head.number + 1)
        segments = [*head.segments, *(Segment(next(numbers), "", 0, generation) for generation in dropped)]
        for start in range(0, len(rows), _SEGMENT_ROWS):
            part, number = rows[start : start + _SEGMENT_ROWS], next(numbers)
            key = f"{self._keys.folder}{number:012d}-{secrets.token_hex(8)}.jsonl.gz"
            lines = [json.dumps(line) for line in (contracts, *part)]
            uploaded.append(key)
            self._store.put(key, gzip.compress("\n".join(lines).encode(), compresslevel=3))
            segments.append(Segment(number, key, len(part)))
        following = replace(head, number=segments[-1].number, segments=tuple(segments))
        sent = [SentRow(row.get("generation", UNNAMED), row["video_id"], row["row_version"]) for row in rows]
        self._put_head(position, following, sent, dropped)
        return True

    def _remove_unnamed(self, uploaded: Sequence[str]) -> None:
        """Remove segments that no head has named, for the one that would have has lost the race."""
        head = self._position().head
        named = [] if head is None else [segment.key for segment in Head.from_json(head).segments]
        for key in uploaded:
            if key not in named:
                self._store.delete(key)

    def _base(self, position: Position) -> Head:
        """What to append to."""
        if position.lost is not None:
            return Head(secrets.token_hex(8), position.number)
        if position.head is not None:
            return Head.from_json(position.head)
        snapshot = self._store.head(self._keys.snapshot)
        if (snapshot and snapshot.etag) != position.snapshot_etag:
            raise PreconditionFailedError(f"{self._keys.snapshot!r} is new")
        number = 0 if snapshot is None else 1
        return Head(secrets.token_hex(8), number, number)

    def _compact(self) -> None:
        """Make the snapshot anew, if that is due and nobody else does."""
        head = Head.from_json(self._position().head or "")
        with self._connect() as connection:
            total = count_rows(connection)
        if sum(segment.rows for segment in head.segments) * _SNAPSHOT_SHARE > total:
            with contextlib.suppress(PreconditionFailedError):
                self._make_snapshot()

    def _make_snapshot(self, *, everything: bool = False) -> bool:
        """Make the snapshot anew, unless another machine does; tells whether it was made.

        Only the machine whose name stands in the head finishes, and it looked at the object that it writes
        over after it had put its name there. So the object that is there when it finishes is its own. The
        name stays, so that the head is unlike any before: equal content would have an equal ETag in S3.

        Args:
            everything: whether to remove copies of damaged parts too.

        Raises:
            PreconditionFailedError: another machine has come in between.
        """
        self._met_erased.clear()
        position, maker = self._position(), secrets.token_hex(8)
        head = self._base(position)
        self._put_head(position, replace(head, maker=maker), [])
        info = self._store.head(self._keys.snapshot)
        with self._scratch() as copy:
            self._copy_rows(copy)
            etag = None if info is None else info.etag
            self._store.put_file_if_unchanged(self._keys.snapshot, copy, etag)
        return self._finish_snapshot(maker, head.number, everything)

    def _finish_snapshot(self, maker: str, number: int, everything: bool) -> bool:
        for _ in range(ATTEMPTS):
            position = self._position()
            head = Head.from_json(position.head or "")
            if head.maker != maker:
                return False
            following = tuple(segment for segment in head.segments if segment.number > number)
            listed = self._listed()
            try:
                self._put_head(position, Head(head.log_id, head.number, number, following, maker), [])
            except PreconditionFailedError:  # others have appended meanwhile
                self._take_in()
                continue
            # what the head does not name, and was there before it changed, nobody can add to it any more
            named = {self._keys.head, *(segment.key for segment in following)}
            for key in listed:
                if key not in named and (everything or not key.startswith(self._damaged)):
                    self._store.delete(key)
            return True
        return False

    def _listed(self) -> list[str]:
        keys: list[str] = self._store.list(self._keys.folder)["key"].to_pylist()
        return keys

    def _copy_rows(self, copy: Path) -> None:
        with self._connect() as connection:
            connection.execute("VACUUM INTO ?", (str(copy),))
        with open_database(copy) as connection:
            for table in ("unsent", "erased", "journal_position", "snapshot_base"):
                connection.execute(f"DROP TABLE IF EXISTS {table}")

    def _put_head(
        self, position: Position, head: Head, sent: Sequence[SentRow], dropped: Sequence[str] = ()
    ) -> None:
        """The moment at which rows are in the log, and generations gone from it."""
        etag = self._store.put_if_unchanged(self._keys.head, head.to_json(), position.head_etag)
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            note_sent(connection, sent, dropped)
            self._finish(connection, Position.at(head, etag), 0)
            connection.execute("COMMIT")

    # inside

    @property
    def _damaged(self) -> str:
        """Where copies of damaged parts are kept, for people."""
        return f"{self._keys.folder}damaged/"
