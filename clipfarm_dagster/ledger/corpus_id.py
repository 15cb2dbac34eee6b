"""Which corpus a ledger belongs to: a store and prefix are told by a random id that is kept there.

A ledger that is pointed at another store would call vectors done that were never put there.
"""

from __future__ import annotations

import json
import uuid

from clipfarm_dagster.errors import LedgerError, ObjectMissingError, PreconditionFailedError
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.store import ObjectStore


def read_corpus_id(store: ObjectStore, key: str) -> str | None:
    """The id of the corpus in a store; null where nothing was ever recorded.

    Raises:
        LedgerError: the object is damaged.
        StoreError: the store cannot be read.
    """
    try:
        data = store.get(key).data
    except ObjectMissingError:
        return None
    try:
        return str(json.loads(data)["corpus_id"])
    except (ValueError, TypeError, KeyError):
        raise LedgerError(
            f"{store.url}: {key!r} does not contain a corpus id; restore its content: the id is in the"
            " table ledger_corpus of each ledger"
        ) from None


def ensure_corpus_id(store: ObjectStore, key: str) -> str:
    """The id of the corpus in a store, made where there is none; two machines at once get the same."""
    corpus_id = read_corpus_id(store, key)
    if corpus_id is not None:
        return corpus_id
    corpus_id = uuid.uuid4().hex
    try:
        store.put_if_unchanged(key, json.dumps({"corpus_id": corpus_id}).encode(), None)
    except PreconditionFailedError:
        return ensure_corpus_id(store, key)
    return corpus_id


def bind_to_corpus(ledger: Ledger, store: ObjectStore, key: str, here: str | None) -> None:
    """Let a ledger belong to the corpus whose id lies under `key`, from its first row on.

    Args:
        here: what `read_corpus_id` gave of late.

    Raises:
        LedgerError: it belongs to another one.
        StoreError: the store cannot be read.
    """
    known = ledger.corpus_id()
    if here is None and known is not None:
        here = read_corpus_id(store, key)  # another process may have written the first row meanwhile
    if known is None and here is not None:
        ledger.set_corpus_id(here)
    elif known is None:
        ledger.before_first_write = lambda: ledger.set_corpus_id(ensure_corpus_id(store, key))
    elif here != known:
        way_out = "CLIPFARM_STATE_URL for another database"
        if ledger.sqlite_path is not None:
            way_out = (
                "another CLIPFARM_HOME; or, if this is the right store, move the ledger's file away, and"
                " it is restored from there"
            )
        raise LedgerError(
            f"the {ledger.stage} ledger at {ledger.name} belongs to a corpus other than that of {key!r} in"
            f" {store.url}: set CLIPFARM_STORE_URL and CLIPFARM_PREFIX back, or use {way_out}"
        )
