"""The command on a disk that is full: one line, and nothing lost."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.instance import SETTINGS_FILE
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster.orchestration.full_disk import disk_trouble
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata, put_transcript

VIDEO_IDS = [f"clip-{number:03}" for number in range(40)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def leave_free(disk: Path, kilobytes: int) -> None:
    """Fill a disk up to so much."""
    state = os.statvfs(disk)
    size = state.f_bavail * state.f_frsize - kilobytes * 1024
    (disk / "filler").write_bytes(bytes(max(0, size)))


class Installation:
    """The command, as a process, over a corpus of 40 transcripts."""

    def __init__(self, home: Path, store: Path, checkpoints: dict[str, str]) -> None:
        self.home = home
        self.corpus = Corpus.open(load_settings(home=home, store_url=str(store)))
        put_metadata(self.corpus, [metadata_row(video_id) for video_id in VIDEO_IDS])
        for video_id in VIDEO_IDS:
            put_transcript(self.corpus, video_id, f"said in {video_id}")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLIPFARM_", "DAGSTER_"))}
        settings = {"CLIPFARM_HOME": str(home), "CLIPFARM_STORE_URL": str(store)}
        self.environment = {**kept, **checkpoints, **settings}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        program = "from clipfarm_dagster.cli import main; main()"
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)

    def assert_told_in_one_line(self, ended: subprocess.CompletedProcess[str], disk: Path) -> None:
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.count("\n") == 1, ended.stderr
        assert ended.stderr.startswith("clipfarm: ")
        assert str(disk) in ended.stderr
        assert "run the command again" in ended.stderr

    def assert_all_is_done(self) -> None:
        ended = self.run("sync", "--stage", "text", "--json")
        assert (ended.returncode, ended.stderr) == (0, "")
        with self.corpus.ledger(Stage.TEXT) as ledger:
            assert ledger.counts() == {Status.SUCCESS: 40}
        assert self.run("verify", "--stage", "text").returncode == 0


def test_a_home_on_a_full_disk(small_disk: Path, tmp_path: Path, checkpoints: dict[str, str]):
    home = small_disk / "home"
    home.mkdir()
    installation = Installation(home, tmp_path / "store", checkpoints)
    failed = 0
    for free in (0, 200, 450, 600):
        leave_free(small_disk, free)
        ended = installation.run("sync", "--stage", "text", "--json")
        (small_disk / "filler").unlink(missing_ok=True)
        if ended.returncode != 0:
            failed += 1
            installation.assert_told_in_one_line(ended, home)
    assert failed >= 3

    installation.assert_all_is_done()
    assert (home / "dagster" / SETTINGS_FILE).stat().st_size > 0, "the shipped settings are lost for good"


def test_a_store_on_a_full_disk(small_disk: Path, tmp_path: Path, checkpoints: dict[str, str]):
    store = small_disk / "store"
    installation = Installation(tmp_path / "home", store, checkpoints)
    leave_free(small_disk, 40)

    ended = installation.run("sync", "--stage", "text", "--json")

    installation.assert_told_in_one_line(ended, store)
    (small_disk / "filler").unlink()
    installation.assert_all_is_done()


def test_a_full_disk_is_found_behind_other_errors(tmp_path: Path):
    engine = create_engine(f"sqlite:///{tmp_path / 'full.sqlite'}")
    with engine.connect() as connection:
        connection.execute(text("PRAGMA max_page_count = 2"))
        connection.execute(text("CREATE TABLE t (x)"))
        with pytest.raises(OperationalError) as full:
            connection.execute(text("INSERT INTO t VALUES (randomblob(100000))"))
    engine.dispose()
    assert disk_trouble(full.value) == "database or disk is full"
    behind = RuntimeError("the step failed")
    behind.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/some/file")
    assert "/some/file" in (disk_trouble(behind) or "")
    assert disk_trouble(OSError(errno.EACCES, "Permission denied")) is None
    with pytest.raises(sqlite3.OperationalError) as other:
        sqlite3.connect(":memory:").execute("no SQL at all")
    assert disk_trouble(other.value) is None
