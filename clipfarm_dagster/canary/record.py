"""What the store has recorded of a contract's canary, without loading a model."""

from __future__ import annotations

import json
from dataclasses import dataclass

from clipfarm_dagster.canary.baseline import Baseline, Step
from clipfarm_dagster.errors import BaselineError, ObjectMissingError
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.vectors.contract import Contract


@dataclass(frozen=True)
class CanaryRecord:
    """The baseline of a contract, and which environments agreed with it."""

    baseline: Baseline
    environments: int
    """How many agreed, before they wrote."""
    last_agreed_at: str | None


def canary_record(contract: Contract, store: ObjectStore, keys: Keys) -> CanaryRecord | None:
    """What is recorded of a contract's canary; None where nothing was embedded under it by this corpus.

    Raises:
        BaselineError: the record cannot be read.
        StoreError: the store cannot be read.
    """
    key = keys.canary_baseline(contract.stage, contract.id)
    try:
        stored = store.get(key)
    except ObjectMissingError:
        return None
    folder = keys.canary_folder(contract.stage, contract.id)
    listed = [name for name in store.list(folder)["key"].to_pylist() if name.endswith(".json")]
    try:
        baseline = Baseline.from_npz(stored.data)
        agreed = [json.loads(store.get(name).data) for name in listed]
        moments = sorted(str(one["agreed_at"]) for one in agreed if one["baseline_etag"] == stored.info.etag)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise BaselineError(
            f"{store.url}: what {folder!r} says of the {contract.stage} canary cannot be read"
            f" ({type(error).__name__}: {error}); put it back from a backup, or make it anew with"
            f" `clipfarm canary --stage {contract.stage} --accept`"
        ) from error
    return CanaryRecord(baseline, len(moments), moments[-1] if moments else None)


def differing_steps(old: Baseline, new: Baseline) -> list[Step]:
    """In which steps before the vector two contracts treat the same input in different ways."""
    import numpy as np

    same = {
        Step.DECODED: np.array_equal(old.trace.decoded, new.trace.decoded),
        Step.PREPARED: np.array_equal(old.trace.prepared, new.trace.prepared),
        Step.WEIGHTS: old.weights_sha256 == new.weights_sha256,
    }
    return [step for step, is_same in same.items() if not is_same]
