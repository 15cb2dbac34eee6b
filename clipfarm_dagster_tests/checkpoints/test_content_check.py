"""A hub model's files are those that the corpus knows under its revision, or are refused."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.checkpoints.content_check import check_content
from clipfarm_dagster.errors import ModelUnavailableError
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys

SHA = "0123456789abcdef0123456789abcdef01234567"
KEYS = Keys()
KEY = KEYS.model_content(Stage.AUDIO, "owner/model", SHA)


@pytest.fixture
def folder(models: dict[Stage, Path], tmp_path: Path) -> Path:
    """A folder with the files of a hub model."""
    return Path(shutil.copytree(models[Stage.AUDIO], tmp_path / "model"))


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(Stage.AUDIO, "owner/model", SHA, str(folder))


def test_the_first_machine_records_the_files_and_a_copy_elsewhere_agrees(
    folder: Path, store: ObjectStore, tmp_path: Path
) -> None:
    check_content(checkpoint(folder), store, KEYS)
    first = store.get(KEY).data
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    check_content(checkpoint(copy), store, KEYS)

    assert store.list()["key"].to_pylist() == [KEY]
    assert store.get(KEY).data == first
    recorded = json.loads(first)
    assert (recorded["model"], recorded["revision"]) == ("owner/model", SHA)
    assert {"config.json", "model.safetensors"} <= set(recorded["files"])
    assert "owner" not in KEY
    assert KEY.startswith("clipfarm/state/models/audio/")


def test_what_no_download_brings_does_not_count(folder: Path, tmp_path: Path) -> None:
    store = ObjectStore.open(str(tmp_path / "store"))
    check_content(checkpoint(folder), store, KEYS)
    for name in ("README.md", "pytorch_model.bin", "onnx/config.json", ".cache/huggingface/download/a.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")

    check_content(checkpoint(folder), store, KEYS)


def one_byte(folder: Path) -> str:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    return "model.safetensors"


def lost(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "config.json"


def added(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("{}")
    return "adapter_config.json"


@pytest.mark.parametrize("change", [one_byte, lost, added])
def test_another_copy_is_refused_by_name_and_both_hashes(change, folder: Path, tmp_path: Path) -> None:
    store = ObjectStore.open(str(tmp_path / "store"))
    check_content(checkpoint(folder), store, KEYS)
    before = store.get(KEY).data
    name = change(folder)

    with pytest.raises(ModelUnavailableError) as raised:
        check_content(checkpoint(folder), store, KEYS)

    told = str(raised.value)
    for part in ("audio model owner/model", SHA, str(folder), store.url, KEY, name, "hf download", "delete"):
        assert part in told
    hashes = [word for word in told.replace(",", "").split() if len(word) == 64]
    assert len(set(hashes)) == 2
    assert store.get(KEY).data == before


def test_a_download_is_recorded_and_compared_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore.open(str(tmp_path / "store"))
    snapshot = tmp_path / "cache" / "models--owner--model" / "snapshots" / SHA
    shutil.copytree(folder, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    check_content(Checkpoint(Stage.AUDIO, "owner/model", SHA), store, KEYS)
    check_content(checkpoint(folder), store, KEYS)
    one_byte(snapshot)
    with pytest.raises(ModelUnavailableError, match=r"model\.safetensors.*--force-download`"):
        check_content(Checkpoint(Stage.AUDIO, "owner/model", SHA), store, KEYS)


def test_of_two_first_machines_one_records_and_the_other_compares(
    folder: Path, store: ObjectStore, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    one_byte(other)

    def check(folder: Path) -> str:
        try:
            check_content(checkpoint(folder), store, KEYS)
        except ModelUnavailableError:
            return "refused"
        return "agrees"

    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(check, [folder, other, folder, other]))

    assert sorted(told) == ["agrees", "agrees", "refused", "refused"]
    assert told[0] == told[2]


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"files": 3}', b"{"])
def test_a_record_that_cannot_be_read_is_named(damage: bytes, folder: Path, tmp_path: Path) -> None:
    store = ObjectStore.open(str(tmp_path / "store"))
    store.put(KEY, damage)
    with pytest.raises(ModelUnavailableError, match=rf"{KEY}.*cannot be read.*delete"):
        check_content(checkpoint(folder), store, KEYS)


def test_a_local_model_needs_no_record(folder: Path, tmp_path: Path) -> None:
    store = ObjectStore.open(str(tmp_path / "store"))
    check_content(Checkpoint(Stage.AUDIO, str(folder), ""), store, KEYS)
    assert store.list()["key"].to_pylist() == []
