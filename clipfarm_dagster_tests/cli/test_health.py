"""`clipfarm config` and `clipfarm doctor`: what is in force, what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.maintenance.health import CLOCK_SECONDS, clock_ahead
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.cli.conftest import Ended
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata

Command = Callable[..., Ended]

folder_store = pytest.mark.parametrize("store", ["folder"], indirect=True)


@folder_store
def test_config_says_where_each_value_comes_from_and_shows_no_secret(
    corpus: Corpus, clipfarm: Command, monkeypatch: pytest.MonkeyPatch
):
    home = corpus.settings.home
    home.mkdir(exist_ok=True)
    (home / "clipfarm.env").write_text("CLIPFARM_RUN_SIZE=7\nCLIPFARM_MAX_ATTEMPTS=9\n")
    monkeypatch.setenv("CLIPFARM_RUN_SIZE", "8")
    monkeypatch.setenv("CLIPFARM_STATE_URL", "postgresql://user:s3cret@host/db?password=s3cret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://user:s3cret@host:9000")

    ended, shown = clipfarm("config", "--json"), clipfarm("config")

    settings = ended.json["settings"]
    assert settings["CLIPFARM_RUN_SIZE"] == {"value": "8", "source": "environment"}
    assert settings["CLIPFARM_MAX_ATTEMPTS"] == {"value": "9", "source": "file"}
    assert settings["CLIPFARM_DEVICE"] == {"value": "auto", "source": "default"}
    assert settings["CLIPFARM_STATE_URL"]["value"] == "postgresql://user:***@host/db"
    assert ended.json["environment"]["AWS_ENDPOINT_URL"] == "https://host:9000"
    assert ended.json["environment"]["AWS_SECRET_ACCESS_KEY"] == "(set, not shown)"
    assert "s3cret" not in ended.output + shown.output
    assert "CLIPFARM_MAX_ATTEMPTS" in shown.output.split("By default")[0]
    assert "CLIPFARM_DEVICE" in shown.output.split("By default")[1]


@pytest.mark.parametrize(
    "url", ["https://user:s3cret@host/", "s3://user:s3cret@bucket", "s3://b?token=s3cret"]
)
@folder_store
def test_config_shows_no_secret_of_a_url_that_cannot_be_used(
    corpus: Corpus, clipfarm: Command, monkeypatch: pytest.MonkeyPatch, url: str
):
    for name in ("CLIPFARM_STORE_URL", "CLIPFARM_METADATA_URL", "CLIPFARM_STATE_URL"):
        monkeypatch.setenv(name, url)

    assert "s3cret" not in clipfarm("config").output + clipfarm("config", "--json").output


def test_the_doctor_finds_all_well_and_leaves_nothing(corpus: Corpus, clipfarm: Command):
    put_metadata(corpus, [metadata_row("a")])
    before = corpus.store.list("")["key"].to_pylist()

    ended = clipfarm("doctor", "--json")

    assert [check for check in ended.json["checks"] if not check["ok"]] == []
    assert (ended.code, ended.json["wrong"]) == (0, 0)
    checks = [check["check"] for check in ended.json["checks"]]
    assert checks[:3] == ["store", "clock", "metadata"]
    assert {"text ledger", "video model", "device", "ffmpeg libraries", "disk"} < set(checks)
    assert corpus.store.list("")["key"].to_pylist() == before


@folder_store
def test_the_doctor_says_what_is_wrong_and_what_to_do(
    corpus: Corpus, clipfarm: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("CLIPFARM_TEXT_MODEL", str(tmp_path / "no-model"))
    monkeypatch.setenv("CLIPFARM_DEVICE", "cuda:7")
    ledger = corpus.settings.home_files.ledger(Stage.VIDEO)
    ledger.parent.mkdir(parents=True)
    ledger.write_bytes(b"no database" * 1000)

    ended = clipfarm("doctor")

    lines = [line for line in ended.output.splitlines() if line.startswith("WRONG")]
    wrong = {line.removeprefix("WRONG  ").partition(":")[0]: line for line in lines}
    assert ended.code == 2
    assert set(wrong) == {"metadata", "text model", "device", "video ledger"}
    assert "set CLIPFARM_METADATA_URL" in wrong["metadata"]
    assert "set CLIPFARM_TEXT_MODEL" in wrong["text model"]
    assert "set CLIPFARM_DEVICE" in wrong["device"]


@pytest.mark.parametrize("seconds", [-120.0, -1.0, 0.0, 1.0, 120.0])
def test_a_clock_is_compared_with_what_the_store_says(seconds: float):
    before = datetime(2026, 1, 1, 12, 0, 0, 300_000, UTC)
    after, there = before + timedelta(seconds=0.2), before - timedelta(seconds=seconds)

    ahead = clock_ahead(before, there.replace(microsecond=0), after)

    assert (abs(ahead) > CLOCK_SECONDS) == (abs(seconds) > CLOCK_SECONDS)
    assert ahead == pytest.approx(seconds, abs=1.5)
