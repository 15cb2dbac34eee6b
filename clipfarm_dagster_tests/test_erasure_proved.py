"""After an erasure no byte of a video is left within reach, its neighbours are as they were, nothing returns.

Whoever looks for what is left shares no code with `clipfarm erase --check`; both have to agree.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
import sqlalchemy

from clipfarm_dagster.demo.corpus import DemoVideo, demo_videos
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.orchestration.erasing.story import Rows, all_rows
from clipfarm_dagster_tests.orchestration.sensors.daemon import Daemon
from clipfarm_dagster_tests.support.buckets import new_versioned_bucket
from clipfarm_dagster_tests.support.command import Ended, run_command
from clipfarm_dagster_tests.support.erasure_world import (
    CHANGED_MODELS,
    ERASED,
    FAILS,
    GONE,
    IN_HAND,
    INSIDE,
    RAW_TOO,
    World,
    said_in,
)
from clipfarm_dagster_tests.support.leftovers import Needles, dump, leftovers, restore
from clipfarm_dagster_tests.support.postgres import new_database
from clipfarm_dagster_tests.support.raw import put_transcript
from workbench.seaweedfs import S3Server

pytestmark = pytest.mark.filterwarnings(
    "ignore:Function `AssetSelection.sources`:DeprecationWarning"  # Dagster's
)

SMALL, FULL = 12, 2_000
"""Videos. Of a small corpus only texts are embedded, and the other modalities of one video."""


@pytest.fixture(scope="module")
def media() -> list[DemoVideo]:
    """A clip for each erased video, and one for all others."""
    return list(demo_videos(4))


CSV = "clipfarm/metadata/shorts_metadata_horizon.csv"
RAW_FOLDERS = [f"clipfarm/raw/{stage}" for stage in Stage]
CHANGING = {"kvs", "daemon_heartbeats", "secondary_indexes", "dynamic_partitions"}
"""Tables of Dagster's that have nothing of a video, or only its id."""


@dataclass(frozen=True)
class Neighbours:
    """All that there is of the other videos."""

    objects: dict[str, str]
    """SHA-256 of vectors and raw objects."""
    rows: dict[str, list[Any]]
    """Of the ledgers, by stage and table."""
    dagster: Rows


@dataclass(frozen=True)
class Backup:
    """What somebody has kept of an installation."""

    home: Path
    state: dict[str, bytes]
    """Objects: snapshots and logs of the ledgers."""
    dumped: bytes | None
    """Of the database."""


@dataclass
class Installation:
    """Where everything of a corpus lies."""

    home: Path
    bucket: str
    database: str | None
    """URL of the PostgreSQL database of ledgers and Dagster; None where they are SQLite files."""
    world: World

    def scan(self, needles: Needles) -> list[str]:
        """What an independent look through everything finds."""
        return leftovers(needles, INSIDE, folder=self.home, bucket=self.bucket, database=self.database)

    def room(self, line: str) -> str:
        """The room that a line of `scan` is about."""
        place = line.partition(": ")[2]
        parts = Path(place.removeprefix(f"{self.home}/")).parts
        return "/".join(parts[:2]) if place.startswith("clipfarm/") else parts[0].split(":")[0]

    def rooms_with_traces(self) -> set[tuple[str, str]]:
        """Where there has to be something before an erasure."""
        rooms = {("id", "cache"), ("vector", "cache"), ("text", "cache")}
        rooms |= {(kind, f"clipfarm/{name}") for kind in ("id", "vector") for name in ("embeddings", "fused")}
        rooms |= {("id", "clipfarm/manifests"), ("id", "clipfarm/generations"), ("id", "clipfarm/raw")}
        if self.database is not None:
            return rooms | {(kind, "dump") for kind in ("id", "preview", "text")}
        dagster = {(kind, "dagster") for kind in ("id", "preview", "text")}
        return rooms | dagster | {("id", "state"), ("id", "clipfarm/state")}

    def tombstones(self) -> dict[str, str]:
        """By id."""
        erased = self.world.corpus.tombstones.read()
        return {video_id: erased.tombstone(video_id) for video_id in ERASED}

    def ledger(self, stage: Stage) -> sqlalchemy.Engine:
        """The database of a stage's ledger."""
        if self.database is None:
            return sqlalchemy.create_engine(
                f"sqlite:///{self.home}/state/{stage}_embedding.sqlite", poolclass=sqlalchemy.NullPool
            )
        options = {"options": f"-csearch_path=clipfarm_{stage}"}
        return sqlalchemy.create_engine(self.database, connect_args=options, poolclass=sqlalchemy.NullPool)

    def items(self, connection: sqlalchemy.Connection, name: str = "processed_items") -> sqlalchemy.Table:
        """A table of a ledger, as it is there."""
        return sqlalchemy.Table(name, sqlalchemy.MetaData(), autoload_with=connection)

    def neighbours(self) -> Neighbours:
        """What there is of the others by now, but for the one that a run has in hand."""
        others, store = {*self.world.neighbours} - {IN_HAND}, self.world.corpus.store
        keys = [key for key in store.list("clipfarm")["key"].to_pylist() if Path(key).stem in others]
        rows: dict[str, list[Any]] = {}
        for stage in Stage:
            with self.ledger(stage).connect() as connection:
                for name in sqlalchemy.inspect(connection).get_table_names():
                    table = self.items(connection, name)
                    if "video_id" in table.c and name != "unsent":
                        found = connection.execute(sqlalchemy.select(table).order_by(table.c.video_id))
                        rows[f"{stage}.{name}"] = [tuple(row) for row in found if row.video_id in others]
        objects = {key: hashlib.sha256(store.get(key).data).hexdigest() for key in keys}
        return Neighbours(objects, rows, all_rows(self.world.instance))

    def backup(self, folder: Path) -> Backup:
        """Copies of home folder, ledgers' objects and database."""
        store = self.world.corpus.store
        home = folder / "old" / "home"
        home.parent.mkdir()
        subprocess.run(["cp", "-a", self.home, home], check=True)  # as another process: see `leftovers`
        keys = store.list("clipfarm/state/")["key"].to_pylist()
        state = {key: store.get(key).data for key in keys if "_embedding." in key}
        return Backup(home, state, None if self.database is None else dump(self.database))

    @contextmanager
    def restored(self, old: Backup, patch: pytest.MonkeyPatch) -> Iterator[Installation]:
        """Another machine, with everything as it was; the ledgers' objects in the store are those of then."""
        for key, data in old.state.items():
            self.world.corpus.store.put(key, data)
        database = None
        if old.dumped is not None and self.database is not None:
            database = new_database(self.database.rpartition("/")[0])
            restore(database, old.dumped)
            patch.setenv("CLIPFARM_STATE_URL", database)
            settings = old.home / "dagster" / "dagster.yaml"
            settings.write_text(settings.read_text().replace(self.database, database))
        patch.setenv("CLIPFARM_HOME", str(old.home))
        patch.setenv("DAGSTER_HOME", str(old.home / "dagster"))
        with dg.DagsterInstance.get() as instance:
            yield Installation(old.home, self.bucket, database, replace(self.world, instance=instance))


@pytest.fixture
def installation(
    request: pytest.FixtureRequest,
    s3_environment: S3Server,
    checkpoints: dict[str, str],
    media: list[DemoVideo],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Iterator[Installation]:
    """SQLite files over a bucket that keeps previous versions, or all tables in one PostgreSQL database over
    a bucket that keeps none; with a number of videos. The parameter is both."""
    kind, videos = request.param
    for name in [name for name in os.environ if name.startswith(("CLIPFARM_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    home, database = tmp_path / "home", None
    (home / "dagster").mkdir(parents=True)
    if kind == "postgres":
        database = new_database(request.getfixturevalue("postgres_url"))
        monkeypatch.setenv("CLIPFARM_STATE_URL", database)
        (home / "dagster" / "dagster.yaml").write_text(
            f"storage: {{postgres: {{postgres_url: '{database}'}}}}"
        )
    bucket = new_versioned_bucket() if kind == "sqlite" else new_bucket()
    for name, value in checkpoints.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CLIPFARM_HOME", str(home))
    monkeypatch.setenv("CLIPFARM_STORE_URL", bucket)
    monkeypatch.setenv("DAGSTER_HOME", str(ensure_instance(home / "dagster")))
    monkeypatch.setenv("COLUMNS", "200")

    def clipfarm(*arguments: str) -> Ended:
        return run_command(monkeypatch, capsys, *arguments)

    stages = [Stage.TEXT] if videos == SMALL else list(Stage)
    with dg.DagsterInstance.get() as instance:
        yield Installation(home, bucket, database, World(instance, clipfarm, media, videos, stages))


def new_bucket() -> str:
    name = f"plain-{os.urandom(8).hex()}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.mark.parametrize(
    ("installation", "planted", "restored"),
    [
        # what is planted is put into tables, what is restored is a log of SQLite ledgers
        pytest.param(("sqlite", SMALL), False, True, id="sqlite-small"),
        pytest.param(("postgres", SMALL), True, False, marks=pytest.mark.slow, id="postgres-small"),
        pytest.param(("sqlite", FULL), True, True, marks=pytest.mark.slow, id="sqlite-full"),
        pytest.param(("postgres", FULL), True, True, marks=pytest.mark.slow, id="postgres-full"),
    ],
    indirect=["installation"],
)
def test_erasure_is_proved(
    installation: Installation,
    planted: bool,
    restored: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    world, exported = installation.world, tmp_path / "exported.parquet"
    world.live(monkeypatch.setenv, exported)
    needles = world.needles(ERASED)
    seen = {(line.split(":")[0], installation.room(line)) for line in installation.scan(needles)}
    assert seen >= installation.rooms_with_traces(), seen
    old = installation.backup(tmp_path)
    before = installation.neighbours()

    certificates = [erased_while_in_hand(world, tmp_path), erased_with_raw(world, tmp_path)]

    for certificate in certificates:
        assert certificate["complete"], certificate
        assert not any(video_id in json.dumps(certificate) for video_id in ERASED)
        assert any("still has" in line for line in certificate["out_of_reach"])
    assert certificates[0]["left"]["raw_objects_kept"] == 3
    is_gone(installation, needles)
    same_neighbours(before, installation.neighbours(), installation.tombstones())

    if planted:
        what_is_put_back_is_found(installation, needles)
    for name in CHANGED_MODELS:
        monkeypatch.delenv(name)
    comes_back_by(installation, exported)
    if restored:
        with monkeypatch.context() as patch, installation.restored(old, patch) as other:
            assert other.world.sync().json["stages"]["text"]["model_calls"] <= 1  # one has changed since
            is_gone(other, needles, raw=ERASED)
        world.sync()
    is_gone(installation, needles, raw=ERASED)


def erased_while_in_hand(world: World, folder: Path) -> Any:
    """Erase a video by a command of its own, while a run of this process has it in the model."""
    certificate = folder / "certificate.json"
    code = "from clipfarm_dagster.cli import main; main()"
    command = [sys.executable, "-c", code, "erase", GONE, "--yes", "--certificate", str(certificate)]
    started: list[subprocess.Popen[str]] = []

    def erase() -> None:
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        while GONE not in world.corpus.tombstones.read():
            assert started[0].poll() is None, started[0].communicate()
            time.sleep(0.1)

    world.run_that_has_in_hand(erase)
    said, _ = started[0].communicate(timeout=300)
    assert started[0].returncode == 0, said
    assert GONE not in said
    return json.loads(certificate.read_text())


def erased_with_raw(world: World, folder: Path) -> Any:
    certificate = folder / "certificate-raw.json"
    done = world.clipfarm("erase", RAW_TOO, FAILS, "--raw", "--yes", "--certificate", str(certificate))
    assert done.code == 0, done
    return json.loads(certificate.read_text())


def is_gone(installation: Installation, needles: Needles, *, raw: Sequence[str] = (GONE,)) -> None:
    """Nothing is found by either of the two that look, but for what is out of reach."""
    assert beyond(installation.scan(needles), raw) == []
    checked = installation.world.clipfarm("erase", "--check", *ERASED, "--json")
    assert (checked.code, checked.json["traces"]) == (0, []), checked


def beyond(found: Sequence[str], raw: Sequence[str]) -> list[str]:
    """What was found, less what a certificate lists as out of reach: the CSV, and raw objects that stay."""
    allowed = tuple(f"{folder}/{video_id}." for folder in RAW_FOLDERS for video_id in raw)
    places = [line.partition(": ")[2] for line in found]
    return [line for line, place in zip(found, places, strict=True) if not place.startswith((CSV, *allowed))]


def same_neighbours(before: Neighbours, after: Neighbours, tombstones: dict[str, str]) -> None:
    """Vectors, raw objects, ledger rows and Dagster's rows are what they were, byte for byte. Where a row of
    Dagster's had an erased id, its tombstone is there now."""
    assert after.objects == before.objects
    assert after.rows == before.rows
    assert len(before.dagster) > 100
    for place, row in before.dagster.items():
        name = place[1]
        named = [video_id for video_id in ERASED if names(row, video_id)]
        if name == "asset_event_tags" or row.get("partition") in ERASED or name in CHANGING:
            continue
        if "_comparison" in str(row.get("asset_key")):  # it has titles, and is removed as a whole
            continue
        expected = {column: without(value, named, tombstones) for column, value in row.items()}
        if (
            name == "asset_keys"
        ):  # with the latest event, which may be of an erased video, or of the one in hand
            latest = {column for column in row if column.startswith(("last_", "cached_"))}
            expected |= {column: after.dagster[place][column] for column in latest}
        assert after.dagster[place] == expected, place


def names(row: dict[str, Any], video_id: str) -> bool:
    return any(video_id in str(value) for value in row.values())


def without(value: Any, named: Sequence[str], tombstones: dict[str, str]) -> Any:
    if not isinstance(value, str):
        return value
    for number, neighbour in enumerate(INSIDE):
        value = value.replace(neighbour, f"\0{number}\0")
    for video_id in named:
        value = value.replace(video_id, tombstones[video_id])
    for number, neighbour in enumerate(INSIDE):
        value = value.replace(f"\0{number}\0", neighbour)
    return value


def what_is_put_back_is_found(installation: Installation, needles: Needles) -> None:
    """Both that look find it. Erasing again removes it, but for a file that is none of ClipFarm's."""
    world = installation.world
    plant(installation)
    checked = world.clipfarm("erase", "--check", *ERASED, "--json")
    assert (checked.code, checked.json["nothing_left"]) == (1, False)
    places = " ".join(trace["place"] for trace in checked.json["traces"])
    for planted in ("notes.txt.gz", "planted.parquet", "processed_items", "partition", "generations/text/"):
        assert planted in places, (planted, places)
    found = "\n".join(beyond(installation.scan(needles), [GONE]))
    for planted in ("notes.txt.gz: gzip", "planted.parquet: column", "generations/text/"):
        assert planted in found, (planted, found)
    assert world.clipfarm("erase", *ERASED, "--yes", "--json").code == 1
    (installation.home / "notes.txt.gz").unlink()
    is_gone(installation, needles)


def plant(installation: Installation) -> None:
    """Put something of an erased video back everywhere, behind ClipFarm's back."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    world, corpus = installation.world, installation.world.corpus
    (installation.home / "notes.txt.gz").write_bytes(gzip.compress(f"about {GONE}".encode()))
    (installation.home / "cache").mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"ids": [GONE] * 1000}), installation.home / "cache" / "planted.parquet", compression="zstd"
    )
    world.instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, [GONE])
    asset = DEFAULT_NAMES.embedding(Stage.TEXT)
    world.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=GONE))
    corpus.store.put(corpus.keys.generation(Stage.TEXT, "0123456789abcdef", GONE), b"numbers")
    with installation.ledger(Stage.TEXT).begin() as connection:
        table = installation.items(connection)
        connection.execute(table.insert().values(video_id=GONE, status="success", retry_count=0))


def comes_back_by(installation: Installation, exported: Path) -> None:
    """The CSV has all three videos still. Their raw objects are uploaded again, and an import has vectors."""
    world, corpus = installation.world, installation.world.corpus
    for number, video_id in enumerate(ERASED):
        corpus.store.put(corpus.keys.raw(Stage.VIDEO, video_id), world.media[number].mp4)
        corpus.store.put(corpus.keys.raw(Stage.AUDIO, video_id), world.media[number].wav)
        put_transcript(corpus, video_id, said_in(video_id))
    planned = world.clipfarm("plan", "--json").json
    assert planned["videos"] == len(world.neighbours)
    imported = world.clipfarm("import", str(exported), "--modality", "text", "--replace", "--json")
    assert {entry["video_id"] for entry in imported.json["refused"]} == set(ERASED)
    assert world.sync().json["stages"]["text"]["model_calls"] == 0
    Daemon(world.instance).tick()
