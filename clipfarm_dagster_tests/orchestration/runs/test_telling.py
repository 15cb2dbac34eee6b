"""What a run tells Dagster arrives once, though the instance's server ends the connection on the way."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy

from clipfarm_dagster.instance import POSTGRES_SETTINGS, SETTINGS_FILE
from clipfarm_dagster.orchestration.events import materialized_versions
from clipfarm_dagster.orchestration.recording import data_version_tags
from clipfarm_dagster.orchestration.runs.telling import tell
from clipfarm_dagster_tests.support.postgres import new_database

MADE, READ = dg.AssetKey("made"), dg.AssetKey("read")
IDS = ("a", "b", "c")


@dg.op
def telling(context: dg.OpExecutionContext) -> None:
    """Tells of three partitions, and that a fourth failed."""
    read = [dg.AssetObservation(READ, partition=name, tags=data_version_tags("r")) for name in IDS]
    made = [dg.AssetMaterialization(MADE, partition=name, tags=data_version_tags(name)) for name in IDS]
    tell(context, MADE, ["d"], [*read, *made])


@dg.job
def tells() -> None:
    telling()


@pytest.fixture
def on_postgres(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """An instance with the settings that are shipped for PostgreSQL."""
    (tmp_path / SETTINGS_FILE).write_text(POSTGRES_SETTINGS.read_text())
    monkeypatch.setenv("CLIPFARM_STATE_URL", new_database(postgres_url))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.get() as instance:
        yield instance


class LosesItsConnection:
    """A storage's batches, of which one meets a server that ends connections."""

    def __init__(self, storage: Any, at: int, *, written: bool) -> None:
        self._store, self._storage, self._at, self._written = storage.store_event_batch, storage, at, written
        self.calls = 0

    def __call__(self, events: Sequence[dg.EventLogEntry]) -> None:
        self.calls += 1
        if self.calls != self._at or self._written:
            self._store(events)
        if self.calls == self._at:
            with self._storage.index_connection() as connection:
                connection.execute(sqlalchemy.text("SELECT pg_terminate_backend(pg_backend_pid())"))


@pytest.mark.parametrize("written", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3], ids=["planned", "observed", "materialized"])
def test_each_partition_is_materialized_once(
    at: int, written: bool, on_postgres: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = on_postgres.event_log_storage
    lossy = LosesItsConnection(storage, at, written=written)
    monkeypatch.setattr(storage, "store_event_batch", lossy)

    done = tells.execute_in_process(instance=on_postgres)

    assert done.success
    assert lossy.calls > 3 or (at, written) == (3, True)
    assert materialized_versions(on_postgres, MADE) == {name: name for name in IDS}
    told = on_postgres.all_logs(done.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert Counter(entry.get_dagster_event().partition for entry in told) == dict.fromkeys(IDS, 1)


def test_another_error_is_told_at_once(
    on_postgres: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = on_postgres.event_log_storage
    calls = []

    def refuses(events: Sequence[dg.EventLogEntry]) -> None:
        calls.append(len(events))
        with storage.index_connection() as connection:  # type: ignore[attr-defined]
            connection.execute(sqlalchemy.text("SELECT 1 / 0"))

    monkeypatch.setattr(storage, "store_event_batch", refuses)

    done = tells.execute_in_process(instance=on_postgres, raise_on_error=False)

    assert not done.success
    assert calls == [1]
