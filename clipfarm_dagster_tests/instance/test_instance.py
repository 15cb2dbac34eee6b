"""The shipped instance's folder."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from clipfarm_dagster.instance import SETTINGS_FILE, WORKSPACE, ensure_instance
from clipfarm_dagster.instance.event_log import PooledSqliteEventLogStorage


def test_settings_are_put_there_once(tmp_path: Path) -> None:
    home = ensure_instance(tmp_path / "a" / "home")
    assert home == tmp_path / "a" / "home"
    settings = home / SETTINGS_FILE
    assert yaml.safe_load(settings.read_text())["telemetry"] == {"enabled": False}
    settings.write_text("telemetry: {enabled: false}\n")
    assert ensure_instance(home) == home
    assert settings.read_text() == "telemetry: {enabled: false}\n"


def test_settings_load_and_the_folder_may_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ensure_instance(tmp_path / "first"), tmp_path / "second"
    monkeypatch.setenv("DAGSTER_HOME", str(first))
    with dg.DagsterInstance.get() as instance:
        assert isinstance(instance.event_log_storage, PooledSqliteEventLogStorage)
        assert not instance.telemetry_enabled
        assert instance.run_retries_enabled
        assert instance.run_monitoring_enabled
        assert instance.get_settings("sensors")["use_threads"]
        assert instance.get_settings("backfills")["use_threads"]
        instance.report_runless_asset_event(dg.AssetMaterialization("an_asset", partition="x"))
        instance.add_dynamic_partitions("videos", ["x"])
    first.rename(second)
    monkeypatch.setenv("DAGSTER_HOME", str(second))
    with dg.DagsterInstance.get() as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("an_asset")) == {"x"}
        assert list(instance.get_dynamic_partitions("videos")) == ["x"]
    assert not first.exists()


def test_dagster_command_migrates_it(tmp_path: Path) -> None:
    home = ensure_instance(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "instance", "migrate"],
        env={**os.environ, "DAGSTER_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (home / "history" / "runs" / "index.db").exists()


def test_the_shipped_workspace_is_the_repository_s():
    assert WORKSPACE.read_text() == (Path(__file__).parents[2] / "workspace.yaml").read_text()
