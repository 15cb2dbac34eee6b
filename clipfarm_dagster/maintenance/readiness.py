"""Whether the generation that the settings ask for may serve, and what is missing before it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from clipfarm_dagster.corpus import Corpus, StageCorpus
from clipfarm_dagster.corpus.generations import recorded_contract
from clipfarm_dagster.errors import FusionError
from clipfarm_dagster.ledger.serving import Serving
from clipfarm_dagster.maintenance.audit import AUDIT_COLUMNS, Audit, Finding, audit
from clipfarm_dagster.maintenance.migration import cut_over, finish_cut_over
from clipfarm_dagster.manifests.strategies import STRATEGIES, make_strategy
from clipfarm_dagster.planning.coverage import Cover, Coverage
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract

_LOST_SHARE, _LOST = 100, 3
"""One in so many served videos may fail for good without a person being asked, or so few."""
_OUTDATED_SHARE = 100
"""One in so many may have a vector of another input: where the input changes all the time, some always do."""

_CHECKS = (Audit.UNIT_NORM, Audit.FINITE, Audit.DIMENSION)


@dataclass(frozen=True)
class Readiness:
    """Whether a generation may serve in place of the one that does."""

    contract_id: str
    coverage: Coverage
    missing: tuple[str, ...]
    """What is not there yet, or is wrong with its vectors, each as words."""
    held: tuple[str, ...]
    """Why it would not serve by itself even if nothing were missing, each as words."""

    @property
    def ready(self) -> bool:
        """Whether it serves by itself when next looked at."""
        return not self.missing and not self.held


def ready_to_cut_over(
    contract_id: str,
    found: Coverage,
    checks: Mapping[Audit, Finding],
    *,
    serving: Serving,
    automatic: bool,
) -> Readiness:
    """Decide whether a generation may serve.

    Every video that is served must have a vector in it, or have failed for good with the same input; videos
    that the metadata no longer has do not count. Few vectors may be of another input than the serving ones,
    which is embedded next, and few videos may be lost.

    Args:
        contract_id: the generation.
        found: what it has of what is served.
        checks: what `audit` says of its vectors.
        serving: what serves now.
        automatic: whether the settings let it serve by itself.
    """
    missing: list[str] = []
    served = found.served - found.count(Cover.ORPHANED)
    if not found.covered:
        missing.append("it has no vectors of what is served")
    elif to_do := found.count(Cover.TO_DO, Cover.WAITING):
        waiting = found.count(Cover.WAITING)
        after = f", {waiting:,} of them once their next attempt is due" if waiting else ""
        missing.append(f"{to_do:,} of {served:,} served videos are still to be embedded{after}")
    if (outdated := found.count(Cover.OUTDATED)) > served // _OUTDATED_SHARE:
        missing.append(f"{outdated:,} of {served:,} served videos have changed and are to be embedded again")
    if (lost := found.count(Cover.FAILED, Cover.MISSING_RAW_OBJECT)) > max(_LOST, served // _LOST_SHARE):
        missing.append(
            f"{lost:,} of {served:,} served videos would lose their vector:"
            f" {found.count(Cover.FAILED):,} fail with this model, and"
            f" {found.count(Cover.MISSING_RAW_OBJECT):,} have no raw object any more"
        )
    missing += [f"{name}: {checks[name].summary}" for name in _CHECKS if checks[name].bad]
    held: list[str] = []
    if not automatic:
        held.append("CLIPFARM_CUT_OVER is manual")
    if serving.rolled_back == contract_id:
        held.append("a person went back from it")
    if serving.following is not None:
        held.append(f"a cut-over to {serving.following} is under way")
    return Readiness(contract_id, found, tuple(missing), tuple(held))


def readiness(corpus: Corpus, stage: Stage, contract_id: str | None = None) -> Readiness | None:
    """Whether a generation may serve in place of the one that does.

    Args:
        contract_id: the generation; by default the one that the settings ask for.

    Returns:
        None where it serves already.

    Raises:
        SettingsError: the settings do not name an exact model.
        ModelUnavailableError: the model that the settings ask for cannot be found.
        MetadataError: the metadata cannot be read.
        LedgerError: the ledger cannot be read, or does not know the contract.
        StoreError: the store cannot be read.
    """
    with corpus.stage(stage) as serving:
        contract = (
            serving.wanted
            if contract_id is None
            else recorded_contract(serving.ledger, contract_id, lambda: serving.wanted)
        )
        return None if contract == serving.contract else readiness_of(corpus, serving, contract)


def readiness_of(corpus: Corpus, serving: StageCorpus, contract: Contract) -> Readiness:
    """The same of an opened stage and a contract that does not serve."""
    other = serving.under(contract)
    found = ready_to_cut_over(
        contract.id,
        other.coverage(corpus.latest_rows()),
        audit(other.ledger.columns(AUDIT_COLUMNS)),
        serving=serving.serving or Serving(serving.contract.id, since=""),
        automatic=corpus.settings.cut_over == "auto",
    )
    return replace(found, missing=(*found.missing, *_fused_no_more(corpus, serving, other)))


def _fused_no_more(corpus: Corpus, serving: StageCorpus, other: StageCorpus) -> list[str]:
    """Why vectors that are fused now could not be fused with those of another generation."""
    stage, dimension = serving.stage, _dimension(other)
    if dimension is None or dimension == _dimension(serving):
        return []
    problems, dimensions = [], {stage: dimension}
    for name in STRATEGIES:
        strategy = make_strategy(name, corpus.settings.fusion_weights)
        if stage not in strategy.stages or corpus.store.head(corpus.keys.fused_manifest(name)) is None:
            continue
        for each in set(strategy.stages) - dimensions.keys():
            with corpus.stage(each) as opened:
                dimensions[each] = _dimension(opened) or 0
        try:
            strategy.dimension(dimensions)
        except FusionError as error:
            problems.append(f"{error}; the vectors that are fused by it would be removed")
    return problems


def _dimension(opened: StageCorpus) -> int | None:
    """The dimension of a generation's vectors; None where there are none, or they differ in it."""
    found = opened.ledger.columns(["embedding_dim"])["embedding_dim"].unique().drop_null().to_pylist()
    return found[0] if len(found) == 1 else None


def cut_over_when_ready(corpus: Corpus, stage: Stage) -> Readiness | None:
    """Let the generation that the settings ask for serve, once nothing is missing and nobody holds it back.

    A cut-over that was broken off is finished first. May be called at any time, by any machine.

    Returns:
        What `readiness` says of that generation; where it was ready, it serves now.

    Raises:
        MigrationError: runs keep writing the vectors that are copied, or another process has changed which
            generation serves; nothing is lost, and the next call goes on.
        ManifestError: vectors are being written or were found lost, and stay so for a while.
        ClipFarmError: what `readiness` raises.
    """
    finish_cut_over(corpus, stage)
    found = readiness(corpus, stage)
    if found is not None and found.ready:
        cut_over(corpus, stage, found.contract_id)
    return found
