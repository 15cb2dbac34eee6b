"""What a run does before it writes the first vector, and what it leaves out."""

from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import defs
from clipfarm_dagster.orchestration.names import BROKEN_TAG, DEFAULT_NAMES
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.orchestration.sensors.daemon import Daemon, put_texts, requested
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, wav

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)


def test_a_run_with_another_copy_of_a_hub_model_writes_nothing(
    corpus: Corpus,
    checkpoints: dict[str, str],
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def put(video_id: str) -> None:
        put_metadata(corpus, [metadata_row(video_id)])
        corpus.store.put(corpus.keys.raw(Stage.AUDIO, video_id), wav())

    def embedded(video_id: str) -> bool:
        return corpus.store.head(corpus.keys.embedding(Stage.AUDIO, video_id)) is not None

    model = Path(shutil.copytree(checkpoints["CLIPFARM_AUDIO_MODEL"], tmp_path / "model"))
    monkeypatch.setenv("CLIPFARM_AUDIO_MODEL", "owner/model")
    monkeypatch.setenv("CLIPFARM_AUDIO_REVISION", "f" * 40)
    monkeypatch.setenv("CLIPFARM_AUDIO_MODEL_PATH", str(model))
    daemon = Daemon(instance)
    put("a")
    [first] = daemon.run(daemon.tick())
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    put("b")
    [refused] = daemon.run(daemon.tick())
    run = instance.get_run_by_id(refused.run_id)

    assert (first.success, embedded("a")) == (True, True)
    assert (refused.success, embedded("b")) == (False, False)
    assert run is not None
    assert run.tags[BROKEN_TAG] == "ModelDiffersError"


def test_a_run_that_was_launched_for_an_erased_video_leaves_it_out(
    corpus: Corpus, instance: dg.DagsterInstance
) -> None:
    daemon = Daemon(instance)
    put_texts(corpus, "a", "gone")
    requests = daemon.tick()
    assert sorted(requested(requests)["text"]) == ["a", "gone"]
    corpus.tombstones.add(["gone"])

    [run] = daemon.run(requests)

    assert run.success
    events = [event for event in instance.all_logs(run.run_id) if event.dagster_event]
    partitions = {event.get_dagster_event().partition for event in events} - {None}
    assert partitions == {"a"}
    with corpus.ledger(Stage.TEXT) as ledger:
        assert ledger.counts() == {"success": 1}
    assert daemon.tick() == []
    put_texts(corpus, "a", "gone", "new", title="another title")
    assert sorted(requested(daemon.tick())["text"]) == ["a", "new"]


def test_an_erased_video_is_not_observed(corpus: Corpus, instance: dg.DagsterInstance) -> None:
    put_texts(corpus, "a", "gone")
    instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, ["a", "gone"])
    corpus.tombstones.add(["gone"])

    key = DEFAULT_NAMES.raw(Stage.TEXT)
    job = defs.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=instance, asset_selection=[key]).success

    seen = instance.fetch_observations(key, limit=10).records
    assert [record.partition_key for record in seen] == ["a"]
