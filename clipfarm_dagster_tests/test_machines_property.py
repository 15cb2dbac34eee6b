"""Random histories of several machines over one store: turns, pauses, kills, lost homes, clocks that differ.

They embed, change which generation serves and go back, drop generations and erase videos. Whatever happens,
the log in the store never claims a vector that the store does not hold, and erased videos stay away. The
machines' stores are real folders, at whose every call a machine can be held up or killed.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import time_machine

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import LedgerError, ManifestError, MetadataError, MigrationError
from clipfarm_dagster.ledger.journal import Journal
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import unknown_success
from clipfarm_dagster.ledger.schema import LedgerRow, Status
from clipfarm_dagster.ledger.verify import retry_failures, verify_vectors
from clipfarm_dagster.maintenance import erasure
from clipfarm_dagster.maintenance.dropping import drop_generation
from clipfarm_dagster.maintenance.migration import cut_over, way_back
from clipfarm_dagster.manifests.refresh import refresh_manifest
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.vectors.npy import from_npy
from clipfarm_dagster_tests.support.hashing_encoder import vector_of
from clipfarm_dagster_tests.support.machines import (
    open_corpus,
    put_texts,
    put_transcript,
    sync_generations,
)

TEXT = Stage.TEXT
IDS = [f"v{n}" for n in range(12)]


PEOPLE = ("retitle", "upload", "contract", "lose home", "swap store")
"""Steps that write neither vectors nor rows."""


class Killed(BaseException):
    """As `kill -9` ends a process: nothing that comes afterwards has any effect."""


@dataclass
class Gate:
    """Lets one machine make so many calls; then it waits, and goes on or is killed."""

    allowed: int | None = None
    """None lets all pass."""
    killed: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)
    waiting: bool = False

    def call(self) -> None:
        with self.changed:
            while self.allowed == 0 and not self.killed:
                self.waiting = True
                self.changed.notify_all()
                self.changed.wait()
            self.waiting = False
            if self.killed:
                raise Killed
            if self.allowed is not None:
                self.allowed -= 1

    def open(self, *, allowed: int | None = None, killed: bool = False) -> None:
        with self.changed:
            self.allowed, self.killed = allowed, killed
            self.changed.notify_all()


class GatedStore(ObjectStore):
    """A folder at whose every call the machine can be held up."""

    def __init__(self, url: str, gate: Gate) -> None:
        super().__init__(url)
        Path(url).mkdir(parents=True, exist_ok=True)
        self.gate = gate
        self._inside = threading.local()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in (
            "head",
            "get",
            "put",
            "put_if_unchanged",
            "put_file_if_unchanged",
            "download",
            "delete",
            "list",
            "copy_each",
            "delete_each",
        ):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            if getattr(self._inside, "call", False):  # a lock may be held
                return found(*arguments, **options)
            self.gate.call()
            self._inside.call = True
            try:
                return found(*arguments, **options)
            finally:
                self._inside.call = False

        return call


@dataclass
class Machine:
    """A home folder, and what happens at it."""

    home: Path
    store_url: str
    gate: Gate = field(default_factory=Gate)
    thread: threading.Thread | None = None
    """Of a turn that is held up."""

    def corpus(self, contract: int, store_url: str | None = None) -> Corpus:
        store = GatedStore(store_url or self.store_url, self.gate)
        return open_corpus(self.home, store, contract)


@pytest.fixture(autouse=True)
def _nothing_is_written_after_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was killed does not write its own ledger either."""

    def refuse_if_killed(ledger: Ledger) -> None:
        store = getattr(ledger.journal, "_store", None)
        if isinstance(store, GatedStore) and store.gate.killed:
            raise Killed

    monkeypatch.setattr("clipfarm_dagster.manifests.refresh.PATIENCE_SECONDS", 0)
    transaction, connect = Ledger._transaction, Journal._connect

    def guarded_transaction(self: Ledger) -> Any:
        refuse_if_killed(self)
        return transaction(self)

    def guarded_connect(self: Journal) -> Any:
        refuse_if_killed(self._ledger)
        return connect(self)

    monkeypatch.setattr(Ledger, "_transaction", guarded_transaction)
    monkeypatch.setattr(Journal, "_connect", guarded_connect)


class World:
    """A store, three machines, and what a person knows of the videos."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder, self.store_url = folder, str(folder / "store")
        self.machines = [Machine(folder / f"home-{n}", self.store_url) for n in range(3)]
        self.auditor = Machine(folder / "auditor", self.store_url)
        self.contract, self.minute = 0, 0
        self.texts = dict.fromkeys(IDS, ("title", "description", "query"))
        self.raw: dict[str, str] = {}
        self.known: set[str] = set()
        self.erased: set[str] = set()
        self.perhaps_left: set[str] = set()
        """Erased videos that a turn had in hand, which may have been killed once their vector was stored."""
        self.steps: dict[str, int] = {}
        self.contract_ids = [self.auditor.corpus(contract).contract(TEXT).id for contract in range(2)]
        for video_id in IDS:
            self.upload(video_id)
        self.put_metadata()

    # what people do

    def upload(self, video_id: str) -> None:
        self.raw[video_id] = f"{video_id}:{self.random.randrange(3)}"
        put_transcript(self.auditor.corpus(self.contract), video_id, self.raw[video_id])

    def retitle(self, video_id: str) -> None:
        self.texts[video_id] = (f"title {self.random.randrange(2)}", "description", "query")
        self.put_metadata()

    def put_metadata(self) -> None:
        self.minute += 1
        put_texts(self.auditor.corpus(self.contract), self.texts, self.minute)

    # what machines do

    def held_up(self) -> bool:
        return any(machine.thread is not None for machine in self.machines)

    def sync(self, machine: Machine) -> None:
        # others that are held up in the middle of something keep a manifest from being made
        with suppress(*((ManifestError, MigrationError) if self.held_up() else ())):
            sync_generations(machine.corpus(self.contract))

    def roll_back(self, machine: Machine) -> None:
        corpus = machine.corpus(self.contract)
        with suppress(MigrationError):  # there is no way back, or no vector
            target = way_back(corpus, TEXT)
            with suppress(ManifestError):  # some vectors were being written when it gave way; sync goes on
                cut_over(corpus, TEXT, target, going_back=True)
            if not self.held_up():
                assert corpus.serving.read()[TEXT].contract_id == target

    def drop(self, machine: Machine) -> None:
        corpus, contract_id = machine.corpus(self.contract), self.contract_ids[1 - self.contract]
        with suppress(MigrationError):  # it serves, or a cut-over is under way
            drop_generation(corpus, TEXT, contract_id)
            self.known = set()
            folder = corpus.keys.generation_folder(TEXT, contract_id)
            assert self.held_up() or corpus.store.list(folder).num_rows == 0

    def erase(self, machine: Machine) -> None:
        if self.random.randrange(5) or len(self.erased) > len(IDS) // 2:
            return
        corpus, video_id = machine.corpus(self.contract), self.random.choice(IDS)
        self.erased.add(video_id)
        self.known.discard(video_id)
        if self.held_up():
            self.perhaps_left.add(video_id)
        corpus.tombstones.add([video_id])
        assert erasure.finish(corpus, [video_id]) == []

    def begin(self, machine: Machine, kind: str, calls: int) -> None:
        """Begin a turn that is held up after so many calls, or comes to its end."""

        def turn() -> None:
            # a turn that is held up while it reads finds things changed, and says so
            with suppress(Killed, MetadataError, MigrationError, ManifestError):
                sync_generations(corpus) if kind == "sync" else cut_over(
                    corpus, TEXT, way_back(corpus, TEXT), going_back=True
                )

        machine.gate = Gate(allowed=calls)
        corpus = machine.corpus(self.contract)
        machine.thread = threading.Thread(target=turn)
        machine.thread.start()
        while machine.thread.is_alive():
            with machine.gate.changed:
                if machine.gate.changed.wait_for(lambda: machine.gate.waiting, timeout=0.05):
                    return
        self.end(machine, killed=False)

    def end(self, machine: Machine, *, killed: bool) -> None:
        """Let a turn that is held up go on to its end, or kill it."""
        assert machine.thread is not None
        machine.gate.open(killed=killed)
        machine.thread.join(60)
        assert not machine.thread.is_alive()
        machine.gate, machine.thread = Gate(), None

    def manifest(self, machine: Machine) -> None:
        corpus = machine.corpus(self.contract)
        try:
            with corpus.stage(TEXT) as opened:
                manifest = refresh_manifest(opened).manifest
        except ManifestError:
            assert any(unknown_success(row) for row in self.rows().values())
        else:
            assert set(manifest.table["video_id"].to_pylist()) == {
                row.video_id
                for row in self.rows().values()
                if row.vector_source_hash is not None and row.status == Status.SUCCESS
            }

    def retry(self, machine: Machine) -> None:
        with machine.corpus(self.contract).ledger(TEXT) as ledger:
            retry_failures(ledger)
            ledger.push()

    def repair(self, machine: Machine) -> None:
        corpus = machine.corpus(self.contract)
        with corpus.ledger(TEXT) as ledger:
            assert self.wrong(corpus, ledger) == []

    def swap_store(self, machine: Machine) -> None:
        """Somebody has set the store's URL to another one."""
        with machine.corpus(self.contract).ledger(TEXT) as ledger:
            if ledger.corpus_id() is None:
                return
        other = self.folder / "other-store"
        corpus = machine.corpus(self.contract, str(other))
        with (
            pytest.raises(LedgerError, match="belongs to a corpus other than"),
            corpus.ledger(TEXT),
        ):
            pass
        assert [path for path in other.rglob("*") if path.is_file()] == []

    # what has to hold

    def wrong(self, corpus: Corpus, ledger: Ledger) -> list[object]:
        """Vectors of any generation that a row claims and that are not what it says. One that is marked is
        work already."""
        found: list[object] = []
        for contract_id in ledger.generations():
            rows = ledger.of(contract_id)
            claiming = {video_id for video_id, row in rows.rows(IDS).items() if row.vector_source_hash}
            findings = verify_vectors(rows, corpus.store, corpus.keys)
            found += [f for f in findings if f.problem and f.video_id in claiming]
        return found

    def rows(self) -> dict[str, LedgerRow]:
        """What serves, by the log in the store, for a machine that is new."""
        shutil.rmtree(self.auditor.home, ignore_errors=True)
        with self.auditor.corpus(self.contract).ledger(TEXT) as ledger:
            return ledger.rows(IDS)

    def check(self) -> None:
        shutil.rmtree(self.auditor.home, ignore_errors=True)
        corpus = self.auditor.corpus(self.contract)
        with corpus.ledger(TEXT) as ledger:
            rows = {i for contract_id in ledger.generations() for i in ledger.of(contract_id).rows(IDS)}
            wrong = self.wrong(corpus, ledger)
        assert wrong == []
        assert self.known <= rows, "a row was lost"
        assert not self.erased & rows, "a video is back"
        self.known |= rows
        keys = corpus.store.list("clipfarm/")["key"].to_pylist()
        left = {Path(key).stem for key in keys if key.endswith(".npy")} & self.erased
        assert left <= self.perhaps_left

    def check_all_is_done(self) -> None:
        """After a whole sync that nobody else disturbed, each vector is the right one."""
        corpus = self.auditor.corpus(self.contract)
        serving, wanted = corpus.serving.read()[TEXT], self.contract_ids[self.contract]
        assert (serving.settled, serving.following) == (True, None)
        assert wanted in (serving.contract_id, serving.rolled_back)
        for contract_id in {serving.contract_id, wanted}:
            with corpus.stage(TEXT) as opened:
                rows = opened.ledger.of(contract_id).rows(IDS)
            assert rows.keys() == set(IDS) - self.erased
            for video_id, row in rows.items():
                stored = corpus.store.get(str(row.artifact_key)).data
                expected = vector_of((self.raw[video_id], *self.texts[video_id]), contract_id)
                assert np.array_equal(from_npy(stored), expected), video_id

    # a history

    @contextmanager
    def some_clock(self) -> Iterator[None]:
        with time_machine.travel(datetime.now(UTC) + timedelta(hours=self.random.uniform(-1, 1)), tick=True):
            yield

    def step(self) -> None:
        machine = self.random.choice(self.machines)
        held_up = self.held_up()
        if machine.thread is not None:
            kind = self.random.choice(["go on", "kill", "kill and lose home"])
        else:
            kinds = (
                ["retitle"] * 3 + ["upload"] * 2 + ["contract", "sync", "sync", "sync", "hold up", "hold up"]
            )
            kinds += ["lose home", "manifest", "retry", "repair", "swap store"]
            kind = self.random.choice([*kinds, "roll back", "drop", "erase"])
        self.steps[kind] = self.steps.get(kind, 0) + 1
        with self.some_clock():
            self.take(kind, machine)
        if kind not in PEOPLE:
            self.check()
        if kind == "sync" and not held_up:
            self.check_all_is_done()

    def take(self, kind: str, machine: Machine) -> None:
        match kind:
            case "retitle":
                self.retitle(self.random.choice(IDS))
            case "upload":
                self.upload(self.random.choice(IDS))
            case "contract":
                if self.random.randrange(3) == 0:
                    self.contract = self.random.randrange(2)
            case "sync":
                self.sync(machine)
            case "hold up":
                kind = self.random.choice(["sync", "sync", "roll back"])
                self.begin(machine, kind, calls=self.random.randrange(90))
            case "go on":
                self.end(machine, killed=False)
            case "kill" | "kill and lose home":
                self.end(machine, killed=True)
                if kind == "kill and lose home":
                    shutil.rmtree(machine.home, ignore_errors=True)
            case "lose home":
                shutil.rmtree(machine.home, ignore_errors=True)
            case _:
                getattr(self, kind.replace(" ", "_"))(machine)

    def close(self) -> None:
        for machine in self.machines:
            if machine.thread is not None:
                self.end(machine, killed=True)


def live(seed: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), seed)
        try:
            for _ in range(steps):
                world.step()
        finally:
            world.close()


@pytest.mark.parametrize("seed", range(4))
def test_the_store_never_holds_a_vector_that_is_called_right_and_is_not(seed: int):
    live(seed, 50)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_the_store_never_holds_a_vector_that_is_called_right_and_is_not_in_ten_thousand_steps(seed: int):
    live(seed, 250)
