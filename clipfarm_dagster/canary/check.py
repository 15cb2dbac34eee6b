"""The canary: a fixed input per stage, compared with a stored baseline step by step on its way to a vector.

The contract says what a vector depends on. The canary finds out when it depends on something else: another
decoder, an image library that resizes otherwise, weights that are not what they were, kernels that round
otherwise. The first machine that embeds under a contract stores the baseline; every environment after that
is compared with it once, before it writes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.resources import files
from typing import Any

from clipfarm_dagster.canary.baseline import Baseline, Step, StepDeviation, compare, weights_sha256
from clipfarm_dagster.canary.environment import Environment
from clipfarm_dagster.errors import BaselineError, DriftError, PreconditionFailedError
from clipfarm_dagster.modalities.encoder import Encoder
from clipfarm_dagster.modalities.registry import MODALITIES
from clipfarm_dagster.modalities.text.encoder import METADATA_TEXT_COLUMNS
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore, StoredObject
from clipfarm_dagster.store.home import Home
from clipfarm_dagster.store.keys import Keys
from clipfarm_dagster.timestamps import timestamp
from clipfarm_dagster.vectors.contract import Contract

_METADATA_FILE = "text.json"
"""Holds the metadata of the canary of every stage, beside the transcript of text's."""


class Result(StrEnum):
    """What came of a comparison."""

    STORED = "stored"
    """There was no baseline; there is now."""
    AGREES = "agrees"
    MOVED = "moved"


@dataclass(frozen=True)
class Report:
    """One comparison of an encoder with its contract's baseline."""

    stage: Stage
    contract_id: str
    result: Result
    environment: Environment
    baseline_etag: str
    baseline_environment: Environment
    baseline_made_at: str
    steps: tuple[StepDeviation, ...] = ()
    since: str | None = None
    """Where a step moved: the last environment that agreed, and what is different in this one."""

    @property
    def moved(self) -> Step | None:
        """The first step beyond its tolerance: those after it only follow."""
        return next((step.step for step in self.steps if step.moved), None)

    @property
    def problem(self) -> str | None:
        """What a person should know of a step that moved."""
        if self.moved is None:
            return None
        step = next(step for step in self.steps if step.step == self.moved)
        if step.deviation is None:
            how = "is of another shape or type" if step.step != Step.WEIGHTS else "has other weights"
        else:
            how = f"lies {step.deviation:.2g} from the baseline, more than {step.tolerance:.2g}"
        return (
            f"the {self.stage} canary moved at the step {self.moved.value!r}: what it gives {how}."
            f" {self.since}. Vectors made now would not compare with those made before under contract"
            f" {self.contract_id}. Undo what changed; or, to go on from here, run"
            f" `clipfarm canary --stage {self.stage} --accept`"
        )


def canary_input(stage: Stage) -> tuple[bytes, dict[str, str]]:
    """The stage's fixed input: raw object and metadata. The bytes never change; baselines belong to them."""
    folder = files("clipfarm_dagster.canary") / "inputs"
    document = json.loads((folder / _METADATA_FILE).read_bytes())
    metadata = {name: document[name] for name in METADATA_TEXT_COLUMNS}
    return (folder / MODALITIES[stage].canary.file).read_bytes(), metadata


def measure(encoder: Encoder, environment: Environment) -> Baseline:
    """Send the canary through an encoder."""
    raw, metadata = canary_input(encoder.contract.stage)
    return Baseline(
        contract_id=encoder.contract.id,
        made_at=timestamp(datetime.now(UTC)),
        environment=environment,
        weights_sha256=weights_sha256(encoder),
        trace=encoder.trace(raw, metadata),
    )


def check_canary(encoder: Encoder, environment: Environment, store: ObjectStore, keys: Keys) -> Report:
    """Compare an encoder with the baseline of its contract; store the baseline where there is none yet.

    One under the id that earlier versions gave the contract is the baseline, and is copied to the present id.

    Raises:
        BaselineError: the stored baseline cannot be read.
        StoreError: the store cannot be read or written.
    """
    contract = encoder.contract
    key = keys.canary_baseline(contract.stage, contract.id)
    now = measure(encoder, environment)
    stored = _stored_baseline(contract, store, keys)
    if stored is None:
        try:
            etag = store.put_if_unchanged(key, now.to_npz(), None)
        except PreconditionFailedError:  # another machine was first, by a moment
            stored = store.get(key)
        else:
            return _remember(_report(Result.STORED, encoder, now, now, etag), store, keys)
    try:
        baseline = Baseline.from_npz(stored.data)
    except Exception as error:  # a dozen types, by where the bytes are damaged
        raise BaselineError(
            f"{store.url}: the {contract.stage} canary's baseline {key!r} cannot be read"
            f" ({type(error).__name__}: {error}); put it back from a backup, or, if this machine makes the"
            f" right vectors, make a new one with `clipfarm canary --stage {contract.stage} --accept`"
        ) from error
    steps = compare(contract.stage, contract.dtype, baseline, now)
    if not any(step.moved for step in steps):
        report = _report(Result.AGREES, encoder, now, baseline, stored.info.etag, steps)
        return _remember(report, store, keys)
    since = _since(encoder, environment, baseline, stored.info.etag, store, keys)
    return _report(Result.MOVED, encoder, now, baseline, stored.info.etag, steps, since)


def accept_canary(encoder: Encoder, environment: Environment, store: ObjectStore, keys: Keys) -> Report:
    """Make what the encoder gives now the baseline of its contract.

    Raises:
        StoreError: the store cannot be written.
    """
    now = measure(encoder, environment)
    etag = store.put(keys.canary_baseline(encoder.contract.stage, encoder.contract.id), now.to_npz())
    return _remember(_report(Result.STORED, encoder, now, now, etag), store, keys)


def check_before_writing(
    encoder: Encoder,
    environment: Environment,
    store: ObjectStore,
    keys: Keys,
    home: Home,
    *,
    again: bool = False,
) -> Report | None:
    """`check_canary`, once for an environment, a contract and a baseline; `None` where that is done already.

    Args:
        again: compare though it is done.

    Raises:
        DriftError: a step moved.
        BaselineError: the stored baseline cannot be read.
        StoreError: the store cannot be read or written.
    """
    contract = encoder.contract
    done = home.canary_mark(contract.stage, contract.id, environment.id)
    info = store.head(keys.canary_baseline(contract.stage, contract.id))
    if not again and info is not None and done.exists() and done.read_text() == f"{store.url} {info.etag}":
        return None
    report = check_canary(encoder, environment, store, keys)
    if report.moved is not None:
        raise DriftError(str(report.problem), stage=contract.stage, step=report.moved)
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(f"{store.url} {report.baseline_etag}")
    return report


def _stored_baseline(contract: Contract, store: ObjectStore, keys: Keys) -> StoredObject | None:
    """The baseline of a contract, from under its former id if need be; `None` where there is none."""
    key, former = (keys.canary_baseline(contract.stage, i) for i in (contract.id, contract.former_id))
    if store.head(key) is None:
        if former == key or store.head(former) is None:
            return None
        with contextlib.suppress(PreconditionFailedError):  # another machine was first, by a moment
            store.put_if_unchanged(key, store.get(former).data, None)
    return store.get(key)


def _report(
    result: Result,
    encoder: Encoder,
    now: Baseline,
    baseline: Baseline,
    etag: str,
    steps: tuple[StepDeviation, ...] = (),
    since: str | None = None,
) -> Report:
    return Report(
        stage=encoder.contract.stage,
        contract_id=encoder.contract.id,
        result=result,
        environment=now.environment,
        baseline_etag=etag,
        baseline_environment=baseline.environment,
        baseline_made_at=baseline.made_at,
        steps=steps,
        since=since,
    )


def _remember(report: Report, store: ObjectStore, keys: Keys) -> Report:
    """Note in the store that an environment agrees, so that a later one that does not can tell since when."""
    record = {
        "agreed_at": timestamp(datetime.now(UTC)),
        "baseline_etag": report.baseline_etag,
        "environment": json.loads(report.environment.to_json()),
        "deviations": {step.step.value: step.deviation for step in report.steps},
    }
    key = keys.canary_agreement(report.stage, report.contract_id, report.environment.id)
    store.put(key, json.dumps(record, indent=1, sort_keys=True).encode())
    return report


def _since(
    encoder: Encoder, environment: Environment, baseline: Baseline, etag: str, store: ObjectStore, keys: Keys
) -> str:
    """Which environment was the last to agree with the baseline, and what is different in `environment`."""
    folder = keys.canary_folder(encoder.contract.stage, encoder.contract.id)
    records: list[Mapping[str, Any]] = [
        json.loads(store.get(key).data)
        for key in store.list(folder)["key"].to_pylist()
        if key.endswith(".json")
    ]
    agreed = [record for record in records if record["baseline_etag"] == etag]
    last = max(agreed, key=lambda record: str(record["agreed_at"]), default=None)
    before = Environment.from_fields(last["environment"]) if last is not None else baseline.environment
    when = last["agreed_at"] if last is not None else baseline.made_at
    changes = ", ".join(before.differences(environment)) or "the environment is the same"
    return (
        f"The baseline was made at {baseline.made_at} in environment {baseline.environment.id}; the last to"
        f" agree was {before.id} at {when}; since then, in {environment.id}: {changes}"
    )
