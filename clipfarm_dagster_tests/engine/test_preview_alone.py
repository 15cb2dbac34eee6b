"""Previews that are made without a model are those that a run with one makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfarm_dagster.demo.corpus import demo_videos
from clipfarm_dagster.engine.local.preview import make_preview
from clipfarm_dagster.errors import InvalidRawObjectError, ObjectMissingError, PreparationError
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys

ITEM = WorkItem("v", {"title": "A title"}, "hash", "2026-01-01T00:00:00.000000Z")


def test_each_stage_shows_what_a_run_shows(
    checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name, value in checkpoints.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(home=tmp_path, device="cpu")
    store, keys = ObjectStore.open(str(tmp_path / "store")), Keys()
    [video] = demo_videos(1)
    raw = {Stage.VIDEO: video.mp4, Stage.AUDIO: video.wav, Stage.TEXT: video.transcript_json}
    for stage in Stage:
        store.put(keys.raw(stage, "v"), raw[stage])
        encoder = load_encoder(stage, settings)

        assert (
            make_preview(stage, ITEM, store, keys, settings)
            == encoder.preparer(raw[stage], ITEM.metadata, preview=True).preview
        )


def test_what_cannot_be_shown_is_an_error_that_says_why(tmp_path: Path):
    settings = load_settings(home=tmp_path, max_object_bytes=10)
    store, keys = ObjectStore.open(str(tmp_path / "store")), Keys()

    with pytest.raises(ObjectMissingError, match=r"v\.json"):
        make_preview(Stage.TEXT, ITEM, store, keys, settings)
    store.put(keys.raw(Stage.TEXT, "v"), b"no JSON")
    with pytest.raises(InvalidRawObjectError, match="JSON"):
        make_preview(Stage.TEXT, ITEM, store, keys, settings)
    store.put(keys.raw(Stage.TEXT, "v"), b"{" + b" " * 20)
    with pytest.raises(PreparationError, match="CLIPFARM_MAX_OBJECT_BYTES=10"):
        make_preview(Stage.TEXT, ITEM, store, keys, settings)
