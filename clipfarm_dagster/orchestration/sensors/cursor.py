"""What a sensor keeps between its ticks, as the text that Dagster stores for it."""

import json
from dataclasses import asdict, dataclass
from typing import Self


@dataclass(frozen=True)
class Cursor:
    """A dataclass of JSON values, each with a default: what a sensor that has seen nothing knows."""

    @classmethod
    def from_cursor(cls, cursor: str | None) -> Self:
        """Read a sensor cursor; one that is not ours counts as nothing seen."""
        try:
            return cls(**json.loads(cursor or "{}"))
        except (TypeError, ValueError):
            return cls()

    def to_cursor(self) -> str:
        """As a sensor cursor."""
        return json.dumps(asdict(self))
