"""Contracts under the ids of earlier versions, which held a model folder's name, are known as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from clipfarm_dagster.ledger.journal import Journal
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.log import JournalKeys
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.vectors.contract import Contract

KEYS = JournalKeys("clipfarm/state/video_embedding.sqlite", "clipfarm/state/video_embedding.journal/")
LOCAL = Contract(
    stage=Stage.VIDEO,
    model_name="my-model",
    model_revision="sha256:" + "a" * 64,
    preprocess_name="p",
    preprocess_version="1",
    pooling="mean",
    dtype="float32",
)
HUB = replace(LOCAL, model_name="owner/model", model_revision="b" * 40)


def row(video_id: str, contract_id: str) -> LedgerRow:
    return LedgerRow(
        video_id=video_id,
        status=Status.SUCCESS,
        source_hash="h",
        contract_id=contract_id,
        vector_source_hash="h",
        vector_contract_id=contract_id,
    )


def write_as_before(ledger: Ledger, *contracts: Contract) -> None:
    """Rows and contracts as a version wrote them whose ids held the labels."""
    ledger.record([row(f"v{n}", contract.former_id) for n, contract in enumerate(contracts)])
    with ledger._transaction() as connection:
        for contract in contracts:
            values = {"contract_id": contract.former_id, "contract": contract.to_json()}
            connection.execute(ledger._tables.contracts.insert().values(values))


def claims(ledger: Ledger) -> list[tuple[str | None, str | None]]:
    rows = ledger.columns(["video_id", "contract_id", "vector_contract_id"]).sort_by("video_id").to_pylist()
    return [(found["contract_id"], found["vector_contract_id"]) for found in rows]


def test_a_ledger_of_before_claims_the_same_vectors(state_url: str, tmp_path: Path):
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger.open(Stage.VIDEO, state_url=state_url, sqlite_path=path)
    write_as_before(ledger, LOCAL, HUB)
    version = ledger.version()
    ledger.close()
    assert LOCAL.former_id != LOCAL.id

    for _ in range(2):
        ledger = Ledger.open(Stage.VIDEO, state_url=state_url, sqlite_path=path)
        assert claims(ledger) == [(LOCAL.id, LOCAL.id), (HUB.id, HUB.id)]
        assert ledger.contract(LOCAL.id) == LOCAL
        assert ledger.contract(LOCAL.former_id) is None
        assert ledger.version() != version  # whoever plans looks again
        ledger.close()


@pytest.mark.parametrize("rows", [2, 60])
def test_what_a_machine_of_before_sends_is_known_too(store: ObjectStore, tmp_path: Path, rows: int):
    """By a segment of the log, and by a snapshot."""
    before = Ledger.open(Stage.VIDEO, state_url="", sqlite_path=tmp_path / "before" / "ledger.sqlite")
    before.journal = Journal(before, store, KEYS, prove=lambda: None)
    before.record([row(f"many-{i}", HUB.id) for i in range(50 if rows == 2 else 0)])
    before.push()
    write_as_before(before, LOCAL)
    before.record([row(f"more-{i}", LOCAL.former_id) for i in range(rows)])
    before.push()
    before.close()

    now = Ledger.open(Stage.VIDEO, state_url="", sqlite_path=tmp_path / "now" / "ledger.sqlite")
    Journal(now, store, KEYS, prove=lambda: None).take_in()

    assert {claim for pair in claims(now) for claim in pair} <= {LOCAL.id, HUB.id}
    assert now.rows(["v0"])["v0"].vector_contract_id == LOCAL.id
    assert now.contract(LOCAL.id) == LOCAL
    now.close()
