"""What a run does before it writes the first vector."""

from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.orchestration.names import BROKEN_TAG
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.orchestration.sensors.daemon import Daemon
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
    assert run.tags[BROKEN_TAG] == "ModelUnavailableError"
