"""What a comparison shows of itself in Dagster, and that an erased video leaves nothing of it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from PIL import Image

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import defs
from clipfarm_dagster.orchestration.erasing import erase_from_dagster
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster_tests.support.migrating import TEXT, TEXTS, Migrating

KEY = DEFAULT_NAMES.comparison(TEXT)
pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)


def materialize(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = defs.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(instance=instance, asset_selection=[KEY])


def latest(instance: dg.DagsterInstance) -> dict[str, Any]:
    [record] = instance.fetch_materializations(KEY, limit=1).records
    assert record.asset_materialization is not None
    return {name: value.value for name, value in record.asset_materialization.metadata.items()}


def everything(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.fixture
def migrating(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> Migrating:
    migrating = Migrating(corpus)
    migrating.embed(migrating.new, [video_id for video_id in TEXTS if video_id != "cards"])
    monkeypatch.setenv("CLIPFARM_TEXT_DTYPE", "bfloat16")
    return migrating


def test_its_metadata_has_what_a_person_judges_by(migrating: Migrating, instance: dg.DagsterInstance):
    assert materialize(instance).success

    shown = latest(instance)
    assert (shown["served"], shown["covered"], shown["coverage"]) == (8, 7, 7 / 8)
    assert (shown["done"], shown["to_do"]) == (7, 1)
    assert (shown["neighbours_in_common"], shown["pairs_kept"], shown["pairs_lost"]) == (1.0, 0, 0)
    assert shown["serving"].endswith(f"({migrating.old})")
    assert shown["compared"].endswith(f"({migrating.new})")
    assert "It has 7 of the 8 vectors that serve" in shown["summary"]
    encoded = re.search(r"data:image/png;base64,([\w+/=]+)", shown["comparison"])
    assert encoded
    assert Image.open(io.BytesIO(base64.b64decode(encoded[1]))).size == (1200, 560)
    rows = [record.data for record in shown["neighbours"].records]
    assert {row["video_id"] for row in rows} <= set(TEXTS)
    assert all(row["title"] == TEXTS[str(row["video_id"])] for row in rows)
    assert {row["new_title"] for row in rows} <= set(TEXTS.values())
    graph = defs.resolve_asset_graph()
    assert graph.get(KEY).group_name == "candidates"


def test_without_another_model_there_is_nothing_to_compare(corpus: Corpus, instance: dg.DagsterInstance):
    Migrating(corpus)

    assert materialize(instance).success

    assert instance.fetch_materializations(KEY, limit=1).records == []


def test_an_erased_video_leaves_neither_its_id_nor_its_title(
    migrating: Migrating, instance: dg.DagsterInstance, tmp_path: Path
):
    instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, list(TEXTS))
    materialize(instance)
    title = TEXTS["bread"].encode()
    assert title in everything(tmp_path / "dagster")

    erased = erase_from_dagster(instance, DEFAULT_NAMES, {"bread": "0123456789abcdef"})

    assert erased.deleted["event_logs"] >= 1
    assert title not in everything(tmp_path / "dagster")
    assert instance.fetch_materializations(KEY, limit=1).records == []
    assert materialize(instance).success
    assert latest(instance)["served"] == 8
