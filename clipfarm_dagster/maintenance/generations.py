"""What generations a stage has: which one serves, which one is being filled, and which are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.corpus.named_generations import known_generations
from clipfarm_dagster.errors import MigrationError, ModelUnavailableError, SettingsError
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.maintenance.readiness import Readiness, readiness_of
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Generation:
    """One generation, as far as the ledger and a listing tell."""

    contract_id: str
    contract: Contract | None
    """None where this ledger does not know it."""
    vectors: int
    """Successes in its ledger rows."""
    objects: int = 0
    """Objects in its own folder under `generations/`."""
    bytes: int = 0
    """Their size."""


@dataclass(frozen=True)
class StageGenerations:
    """The generations of a stage."""

    serving: Generation
    record: Serving
    """What the store says of it; where it says nothing yet, `since` is empty."""
    model_problem: str | None
    """Why the model of the generation that serves cannot be had any more: new videos then wait."""
    candidate: Generation | None
    """What the settings ask for, where another one serves."""
    readiness: Readiness | None
    """What the candidate lacks."""
    wanted_problem: str | None
    """Why it is not known what the settings ask for."""
    others: tuple[Generation, ...]
    """Kept to go back to; and what is left of one that was being dropped."""


def stage_generations(corpus: Corpus, stage: Stage) -> StageGenerations:
    """The generations of a stage.

    Raises:
        ModelUnavailableError: nothing serves yet, and the model that the settings ask for cannot be found.
        MetadataError: the metadata cannot be read.
        LedgerError: the ledger cannot be read.
        StoreError: the store cannot be read.
    """
    with corpus.stage(stage) as opened:
        wanted, wanted_problem = _wanted(opened)
        stored = _stored(corpus.store.list(corpus.keys.generations_folder(stage)), opened)

        def generation(contract_id: str) -> Generation:
            rows = opened.ledger.of(contract_id) if contract_id != opened.contract.id else opened.ledger
            contract = {c.id: c for c in (opened.contract, wanted) if c is not None}.get(contract_id)
            return Generation(
                contract_id,
                contract or opened.ledger.contract(contract_id),
                rows.counts().get(Status.SUCCESS, 0),
                *stored.get(contract_id, (0, 0)),
            )

        serving, record, candidate, found = opened.contract.id, opened.serving, None, None
        if wanted is not None and wanted != opened.contract:
            candidate = generation(wanted.id)
            found = readiness_of(corpus, opened, wanted)
        others = {*known_generations(opened), *stored} - {serving, wanted.id if wanted else serving}
        return StageGenerations(
            serving=generation(serving),
            record=record if record is not None and record.contract_id == serving else Serving(serving, ""),
            model_problem=_model_problem(opened),
            candidate=candidate,
            readiness=found,
            wanted_problem=wanted_problem,
            others=tuple(generation(contract_id) for contract_id in sorted(others)),
        )


def other_generation(corpus: Corpus, stage: Stage) -> str:
    """Contract id of the generation that a person means who names none: the one that the settings ask for,
    or the one that served before.

    Raises:
        MigrationError: the settings ask for what serves, and nothing served before.
        SettingsError: the settings do not name an exact model.
        ModelUnavailableError: the model that the settings ask for cannot be found.
        LedgerError: the ledger cannot be read.
        StoreError: the store cannot be read.
    """
    with corpus.stage(stage) as opened:
        if opened.wanted != opened.contract:
            return opened.wanted.id
        if opened.serving is not None and opened.serving.before is not None:
            return opened.serving.before
    raise MigrationError(
        f"the settings ask for the {stage} vectors that serve, and none served before; name a generation, as"
        " `clipfarm migrate status` lists them"
    )


def _wanted(opened: StageCorpus) -> tuple[Contract | None, str | None]:
    try:
        return opened.wanted, None
    except (SettingsError, ModelUnavailableError) as error:
        return None, str(error)


def _model_problem(opened: StageCorpus) -> str | None:
    try:
        _ = opened.model_settings
    except (SettingsError, ModelUnavailableError) as error:
        return str(error)
    return None


def _stored(listing: pa.Table, opened: StageCorpus) -> Mapping[str, tuple[int, int]]:
    """Number and size of the objects in each generation's folder, by contract id."""
    import pyarrow.compute as pc

    folder = opened.keys.generations_folder(opened.stage)
    names = pc.list_element(pc.split_pattern(pc.utf8_slice_codeunits(listing["key"], len(folder)), "/"), 0)
    sizes = listing.append_column("generation", names).group_by("generation")
    return {
        row["generation"]: (row["size_count"], row["size_sum"])
        for row in sizes.aggregate([("size", "count"), ("size", "sum")]).to_pylist()
    }
