"""What Dagster's pages cost where there are many partitions: `make bench-ui`.

Makes a Dagster instance on SQLite with the shipped settings and 100,000 videos: partitions, runs of 500, and
a materialization of each video in each of three stages. ClipFarm writes the first one of a stage, all others
are copies of it with another id. Then Dagster's webserver answers over these files in two ways, one after the
other: with the shipped event log storage, and with Dagster's own. Asked are the query that every page repeats
every few seconds, as the UI in a real chromium (Debian's) has sent it, and whole pages in that browser.

Seconds are of processor time of the webserver and its code server, which other work on the machine changes
less; a page also has the seconds until the browser has no answer to wait for, less those that the page of
settings takes, where there are no assets.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import yaml
from playwright.sync_api import Browser, Request, sync_playwright

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.definitions import build_definitions
from clipfarm_dagster.instance import SETTINGS_FILE, ensure_instance
from clipfarm_dagster.ledger.rows import WorkItem, success_row
from clipfarm_dagster.orchestration.launching import announce
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.runs.id_list import id_list_run_config, id_list_run_tags
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.hashing import metadata_hash, source_hash

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from clipfarm_dagster_tests.support.servers import free_port
from workbench.event_copies import copy_events

DIMENSION = 768
VIDEOS_PER_RUN = 500
CAPTURED = "2026-01-31T08:00:00.000000Z"
LIVE_QUERY = "AssetGraphLiveQuery"
QUIET_SECONDS = 1.0
"""A page is there when it has asked for nothing for so long."""
ADDED = 10_000
WARM = 5
PAGES = {
    "page of an asset": "/assets/video_embedding",
    "lineage": "/asset-groups",
    "partitions of an asset": "/assets/video_embedding?view=partitions",
}
WITHOUT_ASSETS = "/config"


def make_history(home: Path, count: int) -> None:
    """Partitions, runs, and a materialization of each video in each stage."""
    corpus = Corpus.open(load_settings())
    video_ids = [f"clip-{number:07}" for number in range(count)]
    corpus.store.put(corpus.keys.metadata(), b"video_id,captured_at,title,description,query\n")
    definitions, now, hashed = build_definitions(), datetime.now(UTC), metadata_hash(["1"])
    with dg.DagsterInstance.get() as instance:
        for start in range(0, count, ADDED):
            instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, video_ids[start : start + ADDED])
        for stage in Stage:
            contract = corpus.contract(stage)
            with corpus.stage(stage) as opened:
                opened.ledger.record_contract(contract)
                row = success_row(
                    WorkItem(video_ids[0], {}, hashed, CAPTURED, None),
                    contract,
                    now,
                    source_hash=source_hash(hashed, "1"),
                    raw_etag="1",
                    raw_sha256="1",
                    artifact_key=corpus.keys.embedding(stage, video_ids[0]),
                    vector=np.full(DIMENSION, DIMENSION**-0.5, np.float32),
                    seconds=0.1,
                    note=None,
                )
                announce(instance, DEFAULT_NAMES, opened, [row])
            job = definitions.resolve_job_def(DEFAULT_NAMES.embedding_job(stage))
            for start in range(0, count, VIDEOS_PER_RUN):
                some = video_ids[start : start + VIDEOS_PER_RUN]
                run = instance.create_run_for_job(
                    job,
                    run_config=id_list_run_config(DEFAULT_NAMES, stage, some),
                    tags=id_list_run_tags(DEFAULT_NAMES, stage, some),
                    status=dg.DagsterRunStatus.SUCCESS,
                )
                asset = DEFAULT_NAMES.embedding(stage)
                copy_events(instance, asset, video_ids[0], some, run.run_id, of_run=False)


@dataclass
class Webserver:
    """Dagster's webserver over the instance."""

    process: subprocess.Popen[bytes]
    url: str

    def ask(self, body: bytes) -> Any:
        """A query as the UI sends it."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/graphql", body, headers)
        with urllib.request.urlopen(request, timeout=600) as answer:
            told = json.load(answer)
        assert "errors" not in told, told["errors"]
        return told["data"]

    def processor_seconds(self) -> float:
        """Of the server and what it has started."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                values = stat.read_text().rpartition(")")[2].split()
                if os.getsid(int(stat.parent.name)) == self.process.pid:
                    ticks += int(values[11]) + int(values[12])
            except (OSError, ProcessLookupError):
                continue
        return ticks / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        """Memory of the server's own process, its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@contextmanager
def webserver(dagster_home: Path) -> Iterator[Webserver]:
    """Started, and stopped at the end."""
    port = free_port()
    program = Path(sys.executable).with_name("dagster-webserver")
    process = subprocess.Popen(
        [program, "-m", "clipfarm_dagster.definitions", "-h", "127.0.0.1", "-p", str(port)],
        env={**os.environ, "DAGSTER_HOME": str(dagster_home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    server = Webserver(process, f"http://127.0.0.1:{port}")
    try:
        while True:
            try:
                server.ask(b'{"query": "{ version }"}')
                break
            except OSError:
                assert process.poll() is None, "the webserver has ended"
                time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        process.wait(60)


@dataclass
class Traffic:
    """What a page asks of the server."""

    waiting: int = 0
    latest: float = field(default_factory=time.monotonic)
    bodies: dict[str, bytes] = field(default_factory=dict)

    def busy(self) -> bool:
        """Whether the page waits for an answer, or has had one just now."""
        return self.waiting > 0 or time.monotonic() - self.latest < QUIET_SECONDS

    def asked(self, request: Request) -> None:
        if "/graphql" in request.url and request.post_data_buffer:
            self.waiting += 1
            self.latest = time.monotonic()
            self.bodies.setdefault(
                json.loads(request.post_data_buffer)["operationName"], request.post_data_buffer
            )

    def answered(self, request: Request) -> None:
        if "/graphql" in request.url and request.post_data_buffer:
            self.waiting -= 1
            self.latest = time.monotonic()


def visit(browser: Browser, url: str, *wanted: str) -> tuple[float, dict[str, bytes]]:
    """Open a page; seconds until it has its answers, some wanted ones among them, and what it asked, by the
    names of the queries."""
    with closing(browser.new_page(viewport={"width": 1440, "height": 900})) as page:
        traffic = Traffic()
        page.on("request", traffic.asked)
        page.on("requestfinished", traffic.answered)
        page.on("requestfailed", traffic.answered)
        began = time.monotonic()
        page.goto(url, timeout=600_000)
        while not traffic.bodies.keys() >= set(wanted) or traffic.busy():
            page.wait_for_timeout(50)
        return traffic.latest - began, traffic.bodies


def measured(server: Webserver, action: Callable[[], object]) -> float:
    """Processor seconds that something takes the server."""
    before = server.processor_seconds()
    action()
    return server.processor_seconds() - before


def measure(name: str, dagster_home: Path, browser: Browser, live: bytes) -> dict[str, float]:
    """All figures of one storage."""
    figures: dict[str, float] = {}
    with webserver(dagster_home) as server:
        figures["the repeated query, first, s"] = measured(server, lambda: server.ask(live))
        warm = measured(server, lambda: [server.ask(live) for _ in range(WARM)])
        figures["the same again, s"] = warm / WARM
        os.environ["DAGSTER_HOME"] = str(dagster_home)
        with dg.DagsterInstance.get() as instance:
            keys = [f"{name}-{number}" for number in range(ADDED)]
            began = time.process_time()
            instance.add_dynamic_partitions(DEFAULT_NAMES.partitions_name, keys)
            figures[f"adding {ADDED:,} keys, s"] = time.process_time() - began
        figures[f"the repeated query after {ADDED:,} keys were added, s"] = measured(
            server, lambda: server.ask(live)
        )
        boot, _ = visit(browser, server.url + WITHOUT_ASSETS)
        for page, path in PAGES.items():
            before = server.processor_seconds()
            seconds, _ = visit(browser, server.url + path, LIVE_QUERY)
            figures[f"{page}, server, s"] = server.processor_seconds() - before
            figures[f"{page}, in all beyond the app's own start, s"] = seconds - boot
        figures["memory of the webserver, MB"] = server.megabytes()
    return figures


def main() -> None:
    """Make the files, and compare the two storages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=int, default=100_000)
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("there is no chromium (apt-get install chromium)")
    with tempfile.TemporaryDirectory(prefix="clipfarm-ui-") as name, sync_playwright() as playwright:
        home = Path(name) / "home"
        shipped = ensure_instance(home / "dagster")
        os.environ |= {"CLIPFARM_HOME": str(home), "DAGSTER_HOME": str(shipped)}
        began = time.monotonic()
        make_history(home, options.videos)
        size = sum(path.stat().st_size for path in shipped.rglob("*") if path.is_file()) / 2**30
        print(
            f"{options.videos:,} videos made in {time.monotonic() - began:.0f} s; {size:.1f} GiB", flush=True
        )
        stock = home / "stock"
        stock.mkdir()
        settings = yaml.safe_load((shipped / SETTINGS_FILE).read_text())
        del settings["event_log_storage"]
        settings["storage"] = {"sqlite": {"base_dir": str(shipped)}}
        (stock / SETTINGS_FILE).write_text(yaml.safe_dump(settings))
        with closing(playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])) as browser:
            with webserver(shipped) as server:
                _, bodies = visit(browser, server.url + PAGES["page of an asset"], LIVE_QUERY)
            ours = measure("shipped", shipped, browser, bodies[LIVE_QUERY])
            theirs = measure("stock", stock, browser, bodies[LIVE_QUERY])
    for what, figure in ours.items():
        print(f"{figure:8.2f} shipped, {theirs[what]:8.2f} Dagster's own: {what}")


if __name__ == "__main__":
    main()
