"""Removes a generation that does not serve: the one step of a migration that destroys something.

1. `serving.json` says that the generation is dropped: from then on no machine counts or writes it;
2. its rows are removed from the ledger, and the other machines are told;
3. its vectors are removed from the store.

Each step can be repeated by any machine, also after the last one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import MigrationError, StoreError
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.manifests.strategies import STRATEGIES
from clipfarm_dagster.stages import Stage


@dataclass(frozen=True)
class Dropped:
    """What dropping a generation removed."""

    rows: int
    vectors: int
    bytes: int


def drop_generation(corpus: Corpus, stage: Stage, contract_id: str) -> Dropped:
    """Remove the vectors and rows of a generation that does not serve, for good.

    If it is the one that served before, there is no way back to it afterwards.

    Raises:
        MigrationError: it serves, the settings ask for it, or a cut-over is under way; nothing was removed.
        SettingsError: the settings do not name an exact model.
        ModelUnavailableError: the model that the settings ask for cannot be found.
        LedgerError: the ledger cannot be used.
        StoreError: the store cannot be used, or some vectors cannot be removed.
    """
    wanted = corpus.contract(stage).id

    def begin(now: Serving | None) -> Serving | None:
        problem = _problem(stage, contract_id, wanted, now)
        if problem is not None or now is None:
            raise MigrationError(f"{problem}; nothing was removed")
        return replace(
            now,
            before=None if now.before == contract_id else now.before,
            rolled_back=None if now.rolled_back == contract_id else now.rolled_back,
            dropped=tuple(sorted({*now.dropped, contract_id})),
        )

    with corpus.stage(stage) as opened:
        rows = sum(opened.ledger.of(contract_id).counts().values())
    corpus.serving.change(stage, begin)
    with corpus.stage(stage) as opened:
        opened.ledger.drop(contract_id)
        opened.ledger.push()
    home = corpus.settings.home_files
    for file in (home.vectors(stage, contract_id), *(home.fused_vectors(s, contract_id) for s in STRATEGIES)):
        file.unlink(missing_ok=True)
    objects = corpus.store.list(corpus.keys.generation_folder(stage, contract_id))
    refused = corpus.store.delete_each(objects["key"].to_pylist())
    if refused:
        key, error = next(iter(refused.items()))
        raise StoreError(
            f"{len(refused)} vectors of generation {contract_id} cannot be removed, such as {key!r}: {error}."
            " Its rows are gone; drop it again for the rest"
        )
    return Dropped(rows, objects.num_rows, sum(objects["size"].to_pylist()))


def _problem(stage: Stage, contract_id: str, wanted: str, now: Serving | None) -> str | None:
    """Why a generation must not be dropped."""
    if now is None:
        return f"no generation of {stage} vectors is known to serve yet"
    if now.contract_id == contract_id:
        return f"generation {contract_id} serves the {stage} vectors"
    if now.following is not None or not now.settled:
        return f"a cut-over of the {stage} vectors is under way; `clipfarm migrate status` shows it"
    if contract_id == wanted:
        return (
            f"the settings ask for generation {contract_id} of {stage} vectors, so that it would be filled"
            f" again; set CLIPFARM_{stage.upper()}_MODEL to what serves, or to another model, first"
        )
    return None
