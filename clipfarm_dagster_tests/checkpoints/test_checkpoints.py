"""Where models come from: exact revisions, refused files, and a hub that is slow, wrong or away."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint, resolve_checkpoint
from clipfarm_dagster.checkpoints.content import folder_revision
from clipfarm_dagster.errors import ModelUnavailableError, SettingsError
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.models import model_settings

SHA = "0123456789abcdef0123456789abcdef01234567"
LATER_SHA = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class Hub:
    """A stand-in for the Hugging Face hub: one model with branches, and what was asked of it."""

    url: str = ""
    branches: dict[str, str] = field(default_factory=lambda: {"main": SHA})
    asked: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """How long an answer takes."""
    refuses: bool = False
    """Whether it takes every token as expired."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server on 127.0.0.1 that answers as the hub does, in place of the hub."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/api/models/"):
                state.asked.append(self.path)
                time.sleep(state.seconds)
            revision = self.path.rpartition("/revision/")[2]
            sha = state.branches.get(revision)
            known = self.path.startswith("/api/models/owner/model/revision/") and not state.refuses
            body = json.dumps({"id": "owner/model", "sha": sha, "siblings": []}).encode()
            self.send_response(401 if state.refuses else 200 if known and sha else 404)
            if not (known and sha):
                self.send_header("X-Error-Code", "RevisionNotFound" if known else "RepoNotFound")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", state.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield state
    from huggingface_hub import close_session

    close_session()
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_full_sha_stands_for_itself_without_a_question(hub: Hub, tmp_path: Path) -> None:
    found = resolve_checkpoint(Stage.VIDEO, "owner/model", SHA, frozen=True, record=tmp_path / "r.json")
    assert found == Checkpoint(Stage.VIDEO, "owner/model", SHA)
    assert hub.asked == []


@pytest.mark.parametrize("revision", ["main", "v1.0", SHA[:12], SHA.upper(), ""])
def test_frozen_refuses_what_may_stand_for_another_model_tomorrow(
    revision: str, hub: Hub, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=r"CLIPFARM_VIDEO_REVISION .*CLIPFARM_FROZEN=false"):
        resolve_checkpoint(Stage.VIDEO, "owner/model", revision, frozen=True, record=tmp_path / "r.json")
    assert hub.asked == []


def test_a_branch_is_looked_up_once_and_stays_when_it_moves_on(hub: Hub, tmp_path: Path) -> None:
    record = tmp_path / "state" / "revisions.json"

    def resolve() -> str:
        found = resolve_checkpoint(Stage.VIDEO, "owner/model", "main", frozen=False, record=record)
        return found.revision

    assert resolve() == SHA
    hub.branches["main"] = LATER_SHA
    assert resolve() == SHA
    assert len(hub.asked) == 1
    assert json.loads(record.read_text()) == {"owner/model@main": SHA}
    record.unlink()
    assert resolve() == LATER_SHA


def test_branches_that_are_looked_up_at_the_same_time_are_all_recorded(hub: Hub, tmp_path: Path) -> None:
    record = tmp_path / "state" / "revisions.json"
    hub.branches = {f"branch-{n}": f"{n:040x}" for n in range(4)}
    hub.seconds = 0.2

    def resolve(branch: str) -> str:
        found = resolve_checkpoint(Stage.VIDEO, "owner/model", branch, frozen=False, record=record)
        return found.revision

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(resolve, [*hub.branches, *hub.branches]))

    assert found == [*hub.branches.values(), *hub.branches.values()]
    assert json.loads(record.read_text()) == {
        f"owner/model@{branch}": sha for branch, sha in hub.branches.items()
    }
    assert len(hub.asked) == 4


def test_a_record_that_cannot_be_read_is_named(hub: Hub, tmp_path: Path) -> None:
    record = tmp_path / "revisions.json"
    record.write_text("{")
    with pytest.raises(SettingsError, match=r"revisions\.json"):
        resolve_checkpoint(Stage.VIDEO, "owner/model", "main", frozen=False, record=record)


@pytest.mark.parametrize(("model", "revision"), [("owner/model", LATER_SHA), ("owner/other", SHA)])
def test_a_revision_or_model_that_the_hub_does_not_have_is_named(
    model: str, revision: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelUnavailableError, match=f"{model}.*{revision}.*CLIPFARM_AUDIO_MODEL"):
        Checkpoint(Stage.AUDIO, model, revision).download()
    assert len(hub.asked) == 1


def test_a_cached_model_serves_while_the_hub_is_away(
    tmp_path: Path, models: dict[Stage, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--owner--model" / "snapshots" / SHA
    shutil.copytree(models[Stage.VIDEO], snapshot)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert Checkpoint(Stage.VIDEO, "owner/model", SHA).download() == snapshot
    with pytest.raises(ModelUnavailableError, match="neither cached nor reachable"):
        Checkpoint(Stage.VIDEO, "owner/model", LATER_SHA).download()


@pytest.mark.parametrize(
    ("model", "revision", "refuses"),
    [("owner/model", SHA, True), ("owner/model", LATER_SHA, False), ("owner/gone", SHA, False)],
)
def test_a_cached_model_serves_while_the_hub_refuses_it(
    model: str,
    revision: str,
    refuses: bool,
    hub: Hub,
    tmp_path: Path,
    models: dict[Stage, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    snapshot = tmp_path / f"models--{model.replace('/', '--')}" / "snapshots" / revision
    shutil.copytree(models[Stage.VIDEO], snapshot)
    hub.refuses = refuses
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert Checkpoint(Stage.VIDEO, model, revision).download() == snapshot
    assert len(hub.asked) == 1


@pytest.mark.parametrize("model", ["no/such/folder", "/no/such/folder", "a b", "../x"])
def test_neither_folder_nor_hub_id_is_named(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="CLIPFARM_TEXT_MODEL"):
        resolve_checkpoint(Stage.TEXT, model, SHA, frozen=True, record=tmp_path / "r.json")


# a hub model whose files lie in a folder


def test_a_hub_model_in_a_folder_is_the_hub_model_and_asks_nobody(
    hub: Hub, models: dict[Stage, Path], tmp_path: Path
) -> None:
    folder, record = str(models[Stage.VIDEO]), tmp_path / "r.json"
    found = resolve_checkpoint(Stage.VIDEO, "owner/model", SHA, folder, frozen=True, record=record)
    assert (found.model_name, found.revision, found.is_local) == ("owner/model", SHA, False)
    assert found.download() == models[Stage.VIDEO]
    assert hub.asked == []


def test_a_model_path_that_is_no_folder_is_named_when_the_model_is_needed(tmp_path: Path) -> None:
    path, record = str(tmp_path / "nowhere"), tmp_path / "r.json"
    found = resolve_checkpoint(Stage.VIDEO, "owner/model", SHA, path, frozen=True, record=record)
    with pytest.raises(ModelUnavailableError, match=rf"no folder {path}.*CLIPFARM_VIDEO_MODEL_PATH"):
        found.download()


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("revision", ["main", "", SHA[:12]])
def test_a_model_path_needs_a_full_sha(revision: str, frozen: bool, hub: Hub, tmp_path: Path) -> None:
    record = tmp_path / "r.json"
    with pytest.raises(SettingsError, match=r"CLIPFARM_TEXT_MODEL_PATH.*CLIPFARM_TEXT_REVISION.*full commit"):
        resolve_checkpoint(Stage.TEXT, "owner/model", revision, "/models/text", frozen=frozen, record=record)
    assert hub.asked == []


def test_a_model_path_beside_a_folder_is_refused(models: dict[Stage, Path], tmp_path: Path) -> None:
    folder, record = str(models[Stage.VIDEO]), tmp_path / "r.json"
    with pytest.raises(SettingsError, match=r"CLIPFARM_VIDEO_MODEL_PATH.*a hub model.*without"):
        resolve_checkpoint(Stage.VIDEO, folder, SHA, folder, frozen=True, record=record)


# folders


def test_a_folders_revision_follows_content_and_names_and_not_its_place(
    models: dict[Stage, Path], tmp_path: Path
) -> None:
    first = Path(shutil.copytree(models[Stage.VIDEO], tmp_path / "first"))
    second = Path(shutil.copytree(models[Stage.VIDEO], tmp_path / "second"))
    revision = folder_revision(first)
    assert revision.startswith("sha256:")
    assert folder_revision(second) == revision
    (first / "notes.md").write_text("no model file")
    assert folder_revision(first) == revision
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-6}))
    assert folder_revision(first) != revision
    change_weights(second, lambda weights: next(iter(weights.values())).__iadd__(1e-2))
    assert folder_revision(second) not in (revision, folder_revision(first))


@pytest.mark.parametrize("stage", [Stage.VIDEO, Stage.AUDIO])
def test_weights_that_are_no_safetensors_are_refused(
    stage: Stage, models: dict[Stage, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models[stage], tmp_path / "model"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelUnavailableError, match=r"has no \.safetensors weights"):
        load_encoder(stage, model_settings({**models, stage: folder}, tmp_path))


def remove_first(weights: dict[str, np.ndarray]) -> None:
    del weights[next(name for name in sorted(weights) if "layer" in name and "decoder" not in name)]


def add_one(weights: dict[str, np.ndarray]) -> None:
    weights["something.else"] = np.zeros(1, np.float32)


@pytest.mark.parametrize("stage", list(Stage))
@pytest.mark.parametrize(
    ("change", "message"), [(remove_first, "lacks .*layer"), (add_one, "unexpected something.else")]
)
def test_missing_and_unexpected_weights_are_refused_by_name(
    stage: Stage,
    change: Callable[[dict[str, np.ndarray]], None],
    message: str,
    models: dict[Stage, Path],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(models[stage], tmp_path / "model"))
    change_weights(folder, change)
    with pytest.raises(ModelUnavailableError, match=message):
        load_encoder(stage, model_settings({**models, stage: folder}, tmp_path))


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_a_clear_error(broken: str, models: dict[Stage, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models[Stage.VIDEO], tmp_path / "model"))
    (folder / broken).write_bytes((folder / broken).read_bytes()[:50])
    with pytest.raises(ModelUnavailableError, match="cannot be loaded from"):
        load_encoder(Stage.VIDEO, model_settings({**models, Stage.VIDEO: folder}, tmp_path))


def change_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    path = folder / "model.safetensors"
    weights = {name: array.copy() for name, array in load_file(path).items()}
    change(weights)
    path.unlink()
    save_file(weights, path, metadata={"format": "pt"})


# the whole command, without a network


def test_sync_without_a_model_says_so_before_any_work(tmp_path: Path) -> None:
    from clipfarm_dagster.store import ObjectStore
    from clipfarm_dagster.store.keys import Keys

    store, keys = ObjectStore.open(str(tmp_path / "store")), Keys()
    store.put(keys.metadata(), b"video_id,captured_at,title,description,query\na,2026-01-01,t,d,q\n")
    for stage in Stage:
        store.put(keys.raw(stage, "a"), b"{}")
    before = store.list()["key"].to_pylist()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPFARM_")}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "empty"),
        "CLIPFARM_HOME": str(tmp_path / "home"),
        "CLIPFARM_STORE_URL": str(tmp_path / "store"),
        "CLIPFARM_TEXT_REVISION": LATER_SHA,
    }
    for stage in (Stage.VIDEO, Stage.TEXT):  # one missing, one at a wrong revision
        command = [sys.executable, "-c", "from clipfarm_dagster.cli import main; main()"]
        done = subprocess.run(
            [*command, "sync", "--json", "--stage", str(stage)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert "neither cached nor reachable" in lines[0]
        assert f"CLIPFARM_{stage.upper()}_MODEL" in lines[0]
    assert store.list()["key"].to_pylist() == before
