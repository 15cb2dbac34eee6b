"""How an opened ledger follows the generation that serves."""

from __future__ import annotations

from collections.abc import Callable

from clipfarm_dagster.errors import LedgerError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.schema import UNNAMED
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.vectors.contract import Contract


def follow(ledger: Ledger, serving: Serving) -> None:
    """Let `processed_items` hold the rows of the generation that serves.

    Rows of before there were generations are of the contract of most of their vectors.
    """
    here = ledger.serving()
    if here == UNNAMED:
        ledger.name_serving(next(iter(ledger.vector_contract_ids()), serving.contract_id))
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
