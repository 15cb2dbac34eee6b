"""Settings: from the environment, from the file in the home folder, and refused where unusable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.settings import SETTINGS_FILE, load_settings, variables
from clipfarm_dagster.stages import Stage


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("CLIPFARM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_defaults_are_absolute_and_in_the_home_folder(tmp_path: Path):
    settings = load_settings()

    assert settings.home == tmp_path / ".clipfarm"
    assert settings.store_url == str(tmp_path / ".clipfarm" / "store")
    assert settings.text.columns() == ("title", "description", "query")
    assert settings.video.columns() == settings.audio.columns() == ()


def test_every_documented_variable_is_read(monkeypatch: pytest.MonkeyPatch):
    given = {
        "CLIPFARM_STORE_URL": "s3://bucket",
        "CLIPFARM_VIDEO_MODEL": "owner/model",
        "CLIPFARM_VIDEO_BATCH_SIZE": "3",
        "CLIPFARM_AUDIO_MAX_SECONDS": "5.5",
        "CLIPFARM_TEXT_SOURCE_COLUMNS": "title, query",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    settings = load_settings()

    assert set(given) <= set(variables())
    assert settings.store_url == "s3://bucket"
    assert (settings.video.model, settings.video.batch_size) == ("owner/model", 3)
    assert settings.audio.max_seconds == 5.5
    assert settings.stage(Stage.TEXT).columns() == ("title", "query")


def test_a_relative_model_path_means_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLIPFARM_VIDEO_MODEL_PATH", "models/video")

    settings = load_settings()

    assert (settings.video.model_path, settings.text.model_path) == (str(tmp_path / "models" / "video"), "")


@pytest.mark.parametrize("name", ["what?", "a#b", "100%"])
def test_a_home_folder_that_dagster_would_take_for_a_uri_is_refused(tmp_path: Path, name: str):
    """SQLite read the part before the mark as the path, and made files beside the home folder."""
    with pytest.raises(SettingsError, match=r"CLIPFARM_HOME.*contains \?"):
        load_settings(home=tmp_path / name)


def test_the_file_in_the_home_folder_counts_and_the_environment_wins(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / SETTINGS_FILE).write_text('CLIPFARM_VIDEO_MODEL="file/model"\nCLIPFARM_RUN_SIZE=7\n')
    monkeypatch.setenv("CLIPFARM_HOME", str(home))
    monkeypatch.setenv("CLIPFARM_RUN_SIZE", "8")

    settings = load_settings()

    assert (settings.video.model, settings.run_size) == ("file/model", 8)


def test_runs_are_as_large_as_suits_the_engine_unless_a_size_is_set(tmp_path: Path):
    assert load_settings(home=tmp_path).ids_per_run == 500
    assert load_settings(home=tmp_path, engine="ray").ids_per_run == 10_000
    assert load_settings(home=tmp_path, engine="ray", run_size=7).ids_per_run == 7


def test_overrides_win_over_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPFARM_STORE_URL", "s3://bucket")

    settings = load_settings(home=tmp_path / "other", store_url="folder", prefix=None)

    assert settings.home == tmp_path / "other"
    assert settings.store_url == str(tmp_path / "folder")
    assert settings.prefix == "clipfarm"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("CLIPFARM_RUN_SIZE", "-1", "CLIPFARM_RUN_SIZE"),
        ("CLIPFARM_VIDEO_BATCH_SIZE", "many", "CLIPFARM_VIDEO_BATCH_SIZE"),
        ("CLIPFARM_PREFIX", "../up", "CLIPFARM_PREFIX"),
        ("CLIPFARM_VIDEO_MODLE", "x", "CLIPFARM_VIDEO_MODLE"),
        ("CLIPFARM_STORE_ULR", "x", "did you mean CLIPFARM_STORE_URL"),
    ],
)
def test_an_unusable_or_misspelt_variable_is_refused_by_name(name, value, told, monkeypatch):
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=told):
        load_settings()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("CLIPFARM_WORKRS=3", "settings: CLIPFARM_WORKRS in clipfarm.env .* mean CLIPFARM_WORKERS"),
        ("AWS_REGION=x", "settings: AWS_REGION in clipfarm.env is not a setting of ClipFarm$"),
        ("CLIPFARM_VIDEO_BATCHSIZE=3", "settings: CLIPFARM_VIDEO_BATCHSIZE: "),
        ("CLIPFARM_WORKERS=many", "settings: CLIPFARM_WORKERS: "),
    ],
)
def test_an_unusable_or_misspelt_line_of_the_file_is_refused_by_name(tmp_path: Path, line: str, told: str):
    (tmp_path / SETTINGS_FILE).write_text(line + "\n")

    with pytest.raises(SettingsError, match=told):
        load_settings(home=tmp_path)


def test_a_refused_value_is_not_repeated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLIPFARM_RUN_SIZE", "hunter2")

    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert "hunter2" not in str(caught.value)


def test_names_of_proxies_are_taken_by_comma_and_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLIPFARM_ALLOWED_HOSTS", "Clipfarm.example, other.example:8443")

    assert load_settings().hosts() == {"clipfarm.example", "other.example:8443"}


@pytest.mark.parametrize("name", ["https://clipfarm.example", "clipfarm.example/", "*", "*.example"])
def test_what_is_no_host_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLIPFARM_ALLOWED_HOSTS", name)

    with pytest.raises(SettingsError, match="ALLOWED_HOSTS"):
        load_settings()
