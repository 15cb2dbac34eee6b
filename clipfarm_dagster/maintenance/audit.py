"""What a ledger's columns tell of the vectors that it calls successes, over all of them at once.

Pure functions over Arrow tables. Nothing is downloaded: each success recorded its vector's norm, dimension
and SHA-256 when it was made, and `clipfarm verify` compares those with the objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from clipfarm_dagster.catalog.duckdb_connection import duckdb_connection
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.vectors.npy import NORM_TOLERANCE

if TYPE_CHECKING:
    import pyarrow as pa

AUDIT_COLUMNS = (
    "video_id",
    "status",
    "source_hash",
    "contract_id",
    "model_name",
    "model_revision",
    "embedding_dim",
    "vector_norm",
    "vector_contract_id",
    "vector_raw_sha256",
    "artifact_sha256",
)
"""The ledger columns that the functions below read."""

SHOWN = 50
"""Ids, groups or contracts that a finding names; it counts all of them."""


class Audit(StrEnum):
    """The questions that the columns answer."""

    UNIT_NORM = "unit_norm"
    FINITE = "finite"
    DIMENSION = "dimension"
    ONE_CONTRACT = "one_contract"
    DISTINCT_VECTORS = "distinct_vectors"


@dataclass(frozen=True)
class Finding:
    """An answer. `bad` counts videos, `examples` names some of them or says what they have in common."""

    bad: int
    summary: str
    examples: tuple[str, ...] = ()
    more: Mapping[str, int] = field(default_factory=dict)
    """Other counts worth knowing."""


def audit(rows: pa.Table) -> dict[Audit, Finding]:
    """The answers to all questions; `rows` is `Ledger.columns(AUDIT_COLUMNS)`."""
    with duckdb_connection() as connection:
        connection.register("rows", rows)
        connection.execute(
            f"""CREATE VIEW successes AS
            SELECT *, coalesce(vector_contract_id, contract_id, 'unknown') AS contract
            FROM rows WHERE status = '{Status.SUCCESS}'"""  # noqa: S608 - a constant
        )
        total, unmeasured = connection.execute(
            """SELECT count(*), count(*) FILTER (vector_norm IS NULL AND artifact_sha256 IS NULL)
            FROM successes"""
        ).fetchall()[0]
        counts = {"successes": total, "unmeasured": unmeasured}
        return {
            Audit.UNIT_NORM: _unit_norm(connection, counts),
            Audit.FINITE: _finite(connection, counts),
            Audit.DIMENSION: _dimension(connection, counts),
            Audit.ONE_CONTRACT: _one_contract(connection, counts),
            Audit.DISTINCT_VECTORS: _distinct_vectors(connection, counts),
        }


def sample_successes(rows: pa.Table, size: int) -> list[str]:
    """At most `size` ids of successes, drawn at random."""
    with duckdb_connection() as connection:
        connection.register("rows", rows)
        query = f"""
            SELECT video_id FROM (SELECT video_id FROM rows WHERE status = '{Status.SUCCESS}')
            USING SAMPLE reservoir({int(size)} ROWS)"""  # noqa: S608 - a number and a constant
        return sorted(video_id for (video_id,) in connection.execute(query).fetchall())


def compare_with_events(rows: pa.Table, versions: Mapping[str, str]) -> Finding:
    """Whether Dagster's latest data version of each success is the ledger's: source hash, dot, contract id.

    `versions` are Dagster's, by partition.
    """
    import pyarrow as pa

    events = pa.table(
        [pa.array(versions.keys(), pa.string()), pa.array(versions.values(), pa.string())],
        names=["partition_key", "version"],
    )
    with duckdb_connection() as connection:
        connection.register("rows", rows)
        connection.register("events", events)
        connection.execute(
            f"""CREATE TEMP TABLE differing AS
            SELECT video_id, version IS NULL AS absent FROM rows LEFT JOIN events ON video_id = partition_key
            WHERE status = '{Status.SUCCESS}'
              AND version IS DISTINCT FROM coalesce(source_hash, '') || '.' || coalesce(contract_id, '')"""  # noqa: S608
        )
        absent, differing = connection.execute(
            "SELECT count(*) FILTER (absent), count(*) FILTER (NOT absent) FROM differing"
        ).fetchall()[0]
        ids = connection.execute("SELECT video_id FROM differing ORDER BY 1 LIMIT ?", [SHOWN]).fetchall()
    return Finding(
        bad=absent + differing,
        summary=f"{absent} successes that Dagster does not show as materialized, {differing} with another"
        " data version; materializing these partitions tells Dagster, without running the model",
        examples=tuple(video_id for (video_id,) in ids),
        more={"not_materialized": absent, "other_version": differing},
    )


def _unit_norm(connection: Any, counts: Mapping[str, int]) -> Finding:
    bad, ids = _where(connection, f"isfinite(vector_norm) AND abs(vector_norm - 1) > {NORM_TOLERANCE}")
    return Finding(bad, f"{bad} vectors whose L2 norm is not 1 within {NORM_TOLERANCE}", ids, counts)


def _finite(connection: Any, counts: Mapping[str, int]) -> Finding:
    # SQLite stores a norm that is not a number as NULL
    missing = "vector_norm IS NULL AND artifact_sha256 IS NOT NULL"
    bad, ids = _where(connection, f"({missing}) OR NOT isfinite(vector_norm)")
    return Finding(bad, f"{bad} vectors that are not finite", ids, counts)


def _dimension(connection: Any, counts: Mapping[str, int]) -> Finding:
    connection.execute(
        """CREATE TEMP TABLE dimensions AS
        SELECT contract, arg_max(embedding_dim, n) AS usual FROM (
            SELECT contract, embedding_dim, count(*) AS n FROM successes WHERE embedding_dim > 0 GROUP BY ALL)
        GROUP BY contract"""
    )
    unlike = "SELECT video_id FROM successes LEFT JOIN dimensions USING (contract)"
    condition = "embedding_dim IS NULL OR embedding_dim IS DISTINCT FROM usual"
    bad, ids = _where(connection, condition, source=unlike)
    usual = connection.execute("SELECT contract, usual FROM dimensions ORDER BY 1").fetchall()
    expected = ", ".join(f"{usual} under {contract}" for contract, usual in usual) or "none yet"
    return Finding(bad, f"{bad} vectors whose dimension differs from that of most ({expected})", ids, counts)


def _one_contract(connection: Any, counts: Mapping[str, int]) -> Finding:
    found = connection.execute(
        """SELECT contract, count(*), min(model_name), min(model_revision) FROM successes
        GROUP BY 1 ORDER BY 2 DESC, 1"""
    ).fetchall()
    names = tuple(f"{n} under {contract} ({model}@{revision})" for contract, n, model, revision in found)
    bad = sum(n for _, n, _, _ in found[1:])
    summary = (
        f"vectors of {len(found)} contracts are mixed, and cannot be compared: {'; '.join(names[:5])}"
        if bad
        else "all vectors are of one contract"
    )
    return Finding(bad, summary, names[:SHOWN], counts)


def _distinct_vectors(connection: Any, counts: Mapping[str, int]) -> Finding:
    connection.execute(
        """CREATE TEMP TABLE twins AS
        SELECT artifact_sha256, count(*) AS n, count(DISTINCT vector_raw_sha256) AS inputs,
               list_sort(list(video_id))[:20] AS ids
        FROM successes WHERE artifact_sha256 IS NOT NULL
          AND artifact_sha256 IN (
              SELECT artifact_sha256 FROM successes GROUP BY 1 HAVING count(*) > 1)
        GROUP BY 1"""
    )
    groups, bad = connection.execute("SELECT count(*), coalesce(sum(n), 0)::BIGINT FROM twins").fetchall()[0]
    rows = connection.execute(
        "SELECT ids, n, inputs FROM twins ORDER BY n DESC, ids LIMIT ?", [SHOWN]
    ).fetchall()
    examples = tuple(
        f"{', '.join(ids)}{f' and {n - len(ids)} more' if n > len(ids) else ''}"
        f" ({'the same raw bytes' if inputs == 1 else f'{inputs} different raw objects'})"
        for ids, n, inputs in rows
    )
    summary = f"{bad} videos in {groups} groups share a vector: silence, black frames, or the same clip again"
    return Finding(bad, summary, examples, {**counts, "groups": groups})


def _where(connection: Any, condition: str, *, source: str = "SELECT video_id FROM successes") -> Any:
    """The number of videos that meet a condition, and the first of their ids."""
    count = f"SELECT count(*) FROM ({source} WHERE {condition})"  # noqa: S608 - constants of this module
    ids = f"{source} WHERE {condition} ORDER BY 1 LIMIT {SHOWN}"
    (bad,) = connection.execute(count).fetchall()[0]
    return bad, tuple(video_id for (video_id,) in connection.execute(ids).fetchall())
