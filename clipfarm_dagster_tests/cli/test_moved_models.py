"""Where a model's files lie costs no embedding, and other files under its name write nothing."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, wav

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

SHA = "0123456789abcdef0123456789abcdef01234567"


class Moved:
    """A corpus with sounds, whose audio model moves about."""

    def __init__(
        self, corpus: Corpus, clipfarm: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.corpus, self.clipfarm, self._monkeypatch = corpus, clipfarm, monkeypatch

    def set(self, **values: object) -> None:
        for name in ("MODEL", "REVISION", "MODEL_PATH"):
            self._monkeypatch.delenv(f"CLIPFARM_AUDIO_{name}", raising=False)
        for name, value in values.items():
            self._monkeypatch.setenv(f"CLIPFARM_AUDIO_{name.upper()}", str(value))

    def put(self, *video_ids: str) -> None:
        put_metadata(self.corpus, [metadata_row(video_id) for video_id in video_ids])
        for number, video_id in enumerate(video_ids):
            self.corpus.store.put(self.corpus.keys.raw(Stage.AUDIO, video_id), wav(pitch=200.0 + 50 * number))

    def sync(self) -> Ended:
        return self.clipfarm("sync", "--stage", "audio", "--json")

    def model_calls(self) -> int:
        ended = self.sync()
        assert ended.code == 0, ended.errors
        calls: int = ended.json["stages"]["audio"]["model_calls"]
        return calls

    def keys(self) -> dict[str, str]:
        listed = self.corpus.store.list()
        return dict(zip(listed["key"].to_pylist(), listed["etag"].to_pylist(), strict=True))


@pytest.fixture
def moved(corpus: Corpus, clipfarm: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> Moved:
    found = Moved(corpus, clipfarm, monkeypatch)
    found.put("a", "b")
    return found


def contract_id() -> str:
    return Corpus.open(load_settings()).contract(Stage.AUDIO).id


@pytest.fixture
def model(checkpoints: dict[str, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints["CLIPFARM_AUDIO_MODEL"], tmp_path / "model"))


@pytest.fixture
def hub_cache(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a model in the cache of a hub that cannot be reached."""
    snapshot = tmp_path / "cache" / "models--owner--model" / "snapshots" / SHA
    shutil.copytree(model, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return snapshot


def test_a_ledger_of_before_the_name_was_left_out_embeds_nothing_again(
    moved: Moved, model: Path, tmp_path: Path
) -> None:
    moved.set(model=model)
    assert moved.model_calls() == 2
    present = Corpus.open(load_settings()).contract(Stage.AUDIO)
    ledger = moved.corpus.settings.home_files.ledger(Stage.AUDIO)
    with closing(sqlite3.connect(ledger)) as connection, connection:  # as that version left it
        ids = {"former": present.former_id, "present": present.id}
        connection.execute("UPDATE contracts SET contract_id = :former WHERE contract_id = :present", ids)
        for name in ("contract_id", "vector_contract_id"):
            changed = connection.execute(
                f"UPDATE processed_items SET {name} = :former WHERE {name} = :present",
                ids,
            )
            assert changed.rowcount == 2

    moved.set(model=model.rename(tmp_path / "renamed"))

    assert moved.model_calls() == 0


def test_a_local_model_that_is_renamed_or_copied_embeds_nothing_again(
    moved: Moved, model: Path, tmp_path: Path
) -> None:
    moved.set(model=model)
    first = contract_id()
    assert moved.model_calls() == 2

    renamed = model.rename(tmp_path / "renamed")
    copied = Path(shutil.copytree(renamed, tmp_path / "deep" / "copied"))
    for folder in (renamed, copied):
        moved.set(model=folder)
        assert contract_id() == first
        assert moved.model_calls() == 0
    assert (
        moved.clipfarm("canary", "--stage", "audio", "--json").json["stages"]["audio"]["result"] == "agrees"
    )


def test_a_hub_model_moves_to_a_folder_and_back_and_embeds_nothing_again(
    moved: Moved, model: Path, hub_cache: Path
) -> None:
    named: dict[str, Any] = {"model": "owner/model", "revision": SHA}
    moved.set(**named)
    first = contract_id()
    assert moved.model_calls() == 2

    moved.set(**named, model_path=model)
    assert contract_id() == first
    assert moved.model_calls() == 0
    hub_away = hub_cache.rename(hub_cache.parent / "away")
    moved.put("a", "b", "c")
    assert moved.model_calls() == 1  # of the folder: there is no other
    hub_away.rename(hub_cache)
    moved.set(**named)
    assert moved.model_calls() == 0
    moved.put("a", "b", "c", "d")
    assert moved.model_calls() == 1


@pytest.mark.parametrize("command", ["sync", "canary"])
def test_another_copy_of_a_hub_model_writes_nothing(
    command: str, moved: Moved, model: Path, hub_cache: Path
) -> None:
    named: dict[str, Any] = {"model": "owner/model", "revision": SHA}
    moved.set(**named)
    assert moved.model_calls() == 2
    moved.put("a", "b", "c")
    config = model / "config.json"
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    assert config.read_bytes() != (hub_cache / "config.json").read_bytes()
    before = moved.keys()

    moved.set(**named, model_path=model)
    ended = moved.clipfarm(command, "--stage", "audio", "--json")

    assert (ended.code, ended.output) == (2, "")
    assert len(ended.errors.strip().splitlines()) == 1
    for part in ("audio model owner/model", SHA, str(model), "config.json", "Nothing was written"):
        assert part in ended.errors
    assert moved.keys() == before

    shutil.copy(hub_cache / "config.json", config)
    assert moved.model_calls() == 1
