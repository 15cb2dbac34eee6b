"""A ledger of each kind: an SQLite file, and a schema in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.postgres import new_database


@pytest.fixture(params=["sqlite", "postgresql"])
def state_url(request: pytest.FixtureRequest) -> str:
    """CLIPFARM_STATE_URL of an empty ledger; empty for SQLite."""
    if request.param == "sqlite":
        return ""
    return new_database(request.getfixturevalue("postgres_url"))


@pytest.fixture
def ledger(state_url: str, tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    ledger = Ledger.open(Stage.VIDEO, state_url=state_url, sqlite_path=tmp_path / "video_embedding.sqlite")
    yield ledger
    ledger.close()
