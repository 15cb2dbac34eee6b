"""Files of the cache that were damaged on this machine are made anew, whatever the damage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.support.corpora import embed, write_metadata

pytestmark = pytest.mark.parametrize("store", ["folder"], indirect=True)

IDS = [f"v{number:03d}" for number in range(300)]

# each line of input is a command; a process of its own, since a damaged file could end it
COMMANDS = """
import sys
from clipfarm_dagster.cli import main
from clipfarm_dagster.explore import search
search.INDEX_FROM = 100  # an index is used from fewer vectors on
for line in sys.stdin:
    sys.argv = ["clipfarm", *line.split(), "--json"]
    try:
        main()
    except SystemExit as ended:
        print(f"exit code {ended.code or 0}", flush=True)
"""


class Commands:
    """Runs commands in a process of its own, one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMANDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def run(self, *arguments: str) -> Any:
        """What a command answers, which ends well."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018 - both are pipes
        stdin.write(" ".join(arguments) + "\n")
        stdin.flush()
        answer = [stdout.readline()]
        while answer[-1] and not answer[-1].startswith("exit code"):
            answer.append(stdout.readline())
        assert answer[-1] == "exit code 0\n", (answer, self._process.poll())
        return json.loads(answer[0])


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "truncated": lambda data: data[: len(data) * 2 // 3],
    "zeroed": lambda data: bytes(len(data)),
    "a bit of the start": lambda data: flip(data, 9),
    "a bit of the middle": lambda data: flip(data, len(data) // 2),
    "a bit near the end": lambda data: flip(data, len(data) - 40),
}


def damaged_to(path: Path, data: bytes) -> None:
    """Change a file's bytes and nothing else of it."""
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_damaged_search_index_is_built_anew(corpus: Corpus):
    write_metadata(corpus, IDS)
    embed(corpus, Stage.TEXT, IDS, dimension=64)
    asked = ("search", "--like", "v007", "--top", "5")
    with Commands() as commands:
        expected = commands.run(*asked)
        [index] = corpus.settings.home.rglob("*.usearch")
        whole = index.read_bytes()

        for damage in DAMAGES.values():
            damaged_to(index, damage(whole))
            assert commands.run(*asked) == expected
            [index] = corpus.settings.home.rglob("*.usearch")
            assert len(index.read_bytes()) == len(whole)

        made = index.stat().st_ino
        assert commands.run(*asked) == expected
        assert index.stat().st_ino == made  # used, not built anew


def test_a_damaged_metadata_cache_is_made_anew(corpus: Corpus):
    write_metadata(corpus, [f"{video_id}-{'x' * 60}" for video_id in IDS])
    corpus.settings.home_files.state.mkdir(parents=True)  # without one `plan` leaves nothing behind
    with Commands() as commands:
        expected = commands.run("plan")
        [cache] = corpus.settings.home.rglob("latest-*.parquet")
        whole = cache.read_bytes()

        flips: list[Callable[[bytes], bytes]] = [
            partial(flip, place=place) for place in range(0, len(whole), len(whole) // 25)
        ]
        for damage in (*DAMAGES.values(), *flips):
            damaged_to(cache, damage(whole))
            assert commands.run("plan") == expected
            [cache] = corpus.settings.home.rglob("latest-*.parquet")
            assert cache.read_bytes() == whole

        made = cache.stat().st_ino
        assert commands.run("plan") == expected
        assert cache.stat().st_ino == made  # used, not made anew


def test_what_is_wrong_with_the_csv_itself_is_told(corpus: Corpus, clipfarm: Any):
    write_metadata(corpus, IDS)
    corpus.settings.home_files.state.mkdir(parents=True)
    assert clipfarm("plan").code == 0
    [cache] = corpus.settings.home.rglob("latest-*.parquet")
    cache.write_bytes(b"")
    corpus.store.put(
        corpus.keys.metadata(), b"video_id,captured_at,title,description,query\nv1,yesterday,,,\n"
    )

    ended = clipfarm("plan")

    assert ended.code == 2
    assert "line 2, column 'captured_at'" in ended.errors
