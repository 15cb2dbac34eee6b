"""Asset checks: what the ledgers tell of the embeddings, and whether this machine still makes the same ones.

They depend on no asset's step: after one that embeds, which has no output of its own, Dagster would skip
them, and show that in place of what they found before.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import dagster as dg

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.maintenance.audit import (
    AUDIT_COLUMNS,
    SHOWN,
    Audit,
    Finding,
    audit,
    compare_with_events,
    sample_successes,
)
from clipfarm_dagster.orchestration.events import materialized_versions
from clipfarm_dagster.orchestration.names import CorpusNames, Resource
from clipfarm_dagster.orchestration.resources.taking import CORPUS, take_corpus, take_encoders
from clipfarm_dagster.stages import Stage

SAMPLED_OBJECTS = 200
"""Objects that `objects_present` looks for: a loss of 2% is found with 98% certainty; `verify` reads all."""

OBJECTS_PRESENT = "objects_present"
AGREES_WITH_DAGSTER = "agrees_with_dagster"
CANARY = "canary"

_DESCRIPTIONS = {
    Audit.UNIT_NORM: "Every vector has L2 norm 1.",
    Audit.FINITE: "Every vector contains only finite numbers.",
    Audit.DIMENSION: "All vectors of a contract have one dimension.",
    Audit.ONE_CONTRACT: "All vectors were made under one contract; others cannot be compared with them.",
    Audit.DISTINCT_VECTORS: "No two videos have the same vector, as silence or black frames would cause.",
    OBJECTS_PRESENT: f"The vectors of up to {SAMPLED_OBJECTS} successes, drawn at random, are in the store.",
    AGREES_WITH_DAGSTER: "Dagster shows each success in the ledger as materialized, in the same version.",
}
_WARNINGS = {Audit.DISTINCT_VECTORS, AGREES_WITH_DAGSTER}


def asset_checks(names: CorpusNames) -> list[dg.AssetChecksDefinition]:
    """What the ledgers tell of each stage, and each stage's canary."""
    return [
        *(_ledger_checks(names, stage) for stage in Stage),
        *(_canary_check(names, stage) for stage in Stage),
    ]


def _ledger_checks(names: CorpusNames, stage: Stage) -> dg.AssetChecksDefinition:
    key = names.embedding(stage)

    specs = [
        dg.AssetCheckSpec(str(name), asset=key, description=description)
        for name, description in _DESCRIPTIONS.items()
    ]

    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        corpus = take_corpus(context.resources, names)
        with corpus.ledger(stage) as ledger:
            rows = ledger.columns(AUDIT_COLUMNS)
        versions = materialized_versions(context.instance, key)
        findings: dict[str, Finding] = {
            **{str(name): finding for name, finding in audit(rows).items()},
            OBJECTS_PRESENT: find_objects(corpus, stage, sample_successes(rows, SAMPLED_OBJECTS)),
            AGREES_WITH_DAGSTER: compare_with_events(rows, versions),
        }
        for name, finding in findings.items():
            if dg.AssetCheckKey(key, name) in context.selected_asset_check_keys:
                yield _result(key, name, finding)

    return _independent(names.ledger_checks(stage), checks, specs, names.resources(*CORPUS))


def _canary_check(names: CorpusNames, stage: Stage) -> dg.AssetChecksDefinition:
    key = names.embedding(stage)
    spec = dg.AssetCheckSpec(
        CANARY, asset=key, description="A fixed input still gives the vector in the contract's baseline."
    )

    def canary(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        from clipfarm_dagster.canary.check import check_canary
        from clipfarm_dagster.canary.environment import current_environment
        from clipfarm_dagster.checkpoints.content_check import check_content
        from clipfarm_dagster.modalities.registry import stage_checkpoint

        corpus = take_corpus(context.resources, names)
        check_content(stage_checkpoint(stage, corpus.settings), corpus.store, corpus.keys)
        encoder = take_encoders(context.resources, names).load(stage, corpus.settings)
        report = check_canary(encoder, current_environment(encoder.device), corpus.store, corpus.keys)
        yield dg.AssetCheckResult(
            asset_key=key,
            check_name=CANARY,
            passed=report.moved is None,
            description=report.problem or f"the canary's baseline is {report.result}",
            metadata={
                "contract": report.contract_id,
                "environment": report.environment.id,
                "baseline_environment": report.baseline_environment.id,
                "baseline_made_at": report.baseline_made_at,
                "deviations": {str(step.step): step.deviation for step in report.steps},
            },
        )

    op_name = f"{key.to_python_identifier()}_{CANARY}"
    return _independent(op_name, canary, [spec], names.resources(*CORPUS, Resource.ENCODERS))


def _independent(
    op_name: str,
    check: Callable[[dg.AssetCheckExecutionContext], Iterator[dg.AssetCheckResult]],
    specs: Sequence[dg.AssetCheckSpec],
    required_resource_keys: set[str],
) -> dg.AssetChecksDefinition:
    """Checks as `dagster.multi_asset_check` makes them, any of which can run alone, but without an input: so
    they run whether the asset's step has an output or not."""
    op = dg.op(
        name=op_name,
        out={spec.get_python_identifier(): dg.Out(dg.Nothing, is_required=False) for spec in specs},
        required_resource_keys=required_resource_keys,
    )(check)
    made: dg.AssetChecksDefinition = dg.AssetChecksDefinition.create(
        keys_by_input_name={},
        node_def=op,
        check_specs_by_output_name={spec.get_python_identifier(): spec for spec in specs},
        can_subset=True,
    )
    return made


def find_objects(corpus: Corpus, stage: Stage, video_ids: list[str]) -> Finding:
    """Which of some videos have no vector in the store."""
    with corpus.ledger(stage) as ledger:
        recorded = {row.video_id: row.artifact_key for row in ledger.rows(video_ids).values()}
    keys = [corpus.keys.vector(stage, video_id, recorded.get(video_id)) for video_id in video_ids]
    with ThreadPoolExecutor(16) as pool:
        infos = list(pool.map(corpus.store.head, keys))
    absent = [key for key, info in zip(keys, infos, strict=True) if info is None]
    summary = f"{len(absent)} of {len(keys)} vectors looked for are not in the store"
    return Finding(len(absent), summary, tuple(absent[:SHOWN]), {"looked_for": len(keys)})


def _result(key: dg.AssetKey, name: str, finding: Finding) -> dg.AssetCheckResult:
    metadata: dict[str, dg.MetadataValue] = {
        "bad": dg.MetadataValue.int(finding.bad),
        **{what: dg.MetadataValue.int(count) for what, count in finding.more.items()},
    }
    if finding.examples:
        metadata["examples"] = dg.MetadataValue.md("\n".join(f"- `{text}`" for text in finding.examples))
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=str(name),
        passed=finding.bad == 0,
        severity=dg.AssetCheckSeverity.WARN if name in _WARNINGS else dg.AssetCheckSeverity.ERROR,
        description=finding.summary,
        metadata=metadata,
    )
