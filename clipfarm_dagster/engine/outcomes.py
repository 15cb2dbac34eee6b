"""From what happened to one item to its ledger row. Pure functions; engine and planner write the rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from clipfarm_dagster.ledger.schema import LedgerRow, Status


class Kind(StrEnum):
    """How an item came to its outcome."""

    EMBEDDED = "embedded"
    SAME_BYTES = "same_bytes"
    """The raw object was uploaded again with the same bytes: its vector stands."""
    UP_TO_DATE = "up_to_date"
    """Nothing that the vector depends on has changed: nothing was done."""
    FAILED = "failed"
    MISSING = "missing"


@dataclass(frozen=True)
class Outcome:
    """What became of one item, with the row that says so."""

    kind: Kind
    row: LedgerRow
    preview: str | None = None

    def with_row(self, row: LedgerRow) -> Outcome:
        """The same outcome with what became of it when its vector was stored."""
        return replace(self, row=row, kind=self.kind if row.status == self.row.status else Kind.FAILED)

    @property
    def succeeded(self) -> bool:
        """Whether the store holds the right vector."""
        return self.row.status == Status.SUCCESS
