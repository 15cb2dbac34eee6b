"""Which generation of a stage serves, and how an opened ledger follows it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import UNNAMED
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.vectors.contract import Contract

if TYPE_CHECKING:
    from clipfarm_dagster.corpus.stage_corpus import StageCorpus


def serving_contract(ledger: Ledger, serving: Serving | None, wanted: Callable[[], Contract]) -> Contract:
    """The contract of the generation that serves.

    It is the one that the store names, or the wanted one while there is no vector that anybody could miss.
    Vectors of before the store named one serve under the contract of most of them, unless some are of the
    wanted contract.

    Args:
        ledger: the rows of the generation that the store names; all there are, where it names none.
        serving: what the store says.
        wanted: gives the contract that the settings ask for.

    Raises:
        LedgerError: the ledger does not know the contract that the store names.
        ClipFarmError: what `wanted` raises, where it has to be asked.
    """
    if serving is not None:
        if serving.following is not None or ledger.has_vector():
            return recorded_contract(ledger, serving.contract_id, wanted)
        return wanted()
    contract = wanted()
    if not ledger.has_vector(contract.id):
        known = (ledger.contract(contract_id) for contract_id in ledger.vector_contract_ids())
        return next((other for other in known if other is not None), contract)
    return contract


def serve(opened: StageCorpus) -> None:
    """Put an opened stage under the contract of the generation that serves. Where the store does not say that
    it does, the first write to the ledger says so."""
    ledger, seen = opened.ledger, opened.serving
    contract = serving_contract(ledger, seen, lambda: opened.wanted)
    opened.given_contract, opened.serving_id = contract, contract.id
    if seen is not None and seen.contract_id == contract.id:
        return
    if seen is not None:
        opened.ledger = ledger.of(contract.id)
    record, bind, begun = opened.record, opened.ledger.before_first_write, False

    def begin() -> None:
        nonlocal begun
        if begun or record is None:
            return
        if bind is not None:
            bind()
            opened.ledger.before_first_write = begin  # which `bind` has taken away
        here = _begins(contract.id, seen)
        told = record.change(opened.stage, lambda now: here if now == seen else now)
        assert told is not None
        begun = True  # what follows writes
        follow(opened.ledger, told)
        opened.ledger.generation = contract.id
        opened.serving, opened.serving_id = told, told.contract_id

    opened.ledger.before_first_write = begin


def _begins(contract_id: str, seen: Serving | None) -> Serving:
    """What is said where a generation serves of which there is no vector yet, nor of the one before."""
    since = timestamp(datetime.now(UTC))
    if seen is None:
        return Serving(contract_id, since)
    before = None if seen.before == contract_id else seen.before
    dropped = tuple(other for other in seen.dropped if other != contract_id)
    return Serving(contract_id, since, before, dropped=dropped)


def follow(ledger: Ledger, serving: Serving) -> None:
    """Let `processed_items` hold the rows of the generation that serves.

    Rows of before there were generations are of that one if some of their vectors are, and else of the
    contract of most.
    """
    here = ledger.serving()
    if here == UNNAMED:
        claimed = ledger.of(UNNAMED).vector_contract_ids()
        known = serving.contract_id in claimed
        ledger.name_serving(serving.contract_id if known else next(iter(claimed), serving.contract_id))
        here = ledger.serving()
    if here != serving.contract_id:
        ledger.serve(serving.contract_id)


def forget_dropped(ledger: Ledger, serving: Serving) -> None:
    """Forget the rows of generations that were dropped: this machine may have written some before it knew."""
    if serving.dropped:
        for contract_id in set(serving.dropped).intersection(ledger.generations()):
            ledger.drop(contract_id, tell=False)


def recorded_contract(ledger: Ledger, contract_id: str, wanted: Callable[[], Contract]) -> Contract:
    """The contract with an id: as the ledger has recorded it, or as the settings ask for it.

    Raises:
        LedgerError: it is neither.
    """
    contract = ledger.contract(contract_id)
    if contract is None:
        contract = wanted()
        if contract.id != contract_id:
            raise LedgerError(
                f"the {ledger.stage} ledger at {ledger.name} does not know the contract {contract_id}"
            )
    return contract
