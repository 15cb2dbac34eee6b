"""Processes that work on a corpus and may be killed at any moment, each begun within milliseconds.

Usage: python -m clipfarm_dagster_tests.support.fire_run
Imports what they need. Then each line of standard input, a JSON object, asks for one:

    {"environment": {…}, "command": ["sync", MODEL_LOG, STOP_FILE], "said": FILE}

It is forked from here, with its output in the file `said`. Answered are its number, and once it has ended its
exit code, each as a line. MODEL_LOG gets a line for each item that has gone through a model: its stage and
contract id.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Whatever is large is imported in functions: worker processes import this module too.

IMPORTED_BEFORE = (
    "clipfarm_dagster.cli.migrate",
    "clipfarm_dagster.cli.sync",
    "clipfarm_dagster.definitions",
    "clipfarm_dagster.modalities.audio.encoder",
    "clipfarm_dagster.modalities.text.encoder",
    "clipfarm_dagster.modalities.video.encoder",
    "duckdb",
    "psutil",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "torch",
    "transformers",
)


def log_model_calls(path: str) -> None:
    """Write a line for each item that goes through a model, and not for the canary's."""
    from clipfarm_dagster.orchestration.resources.encoders import EncodersResource

    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    load, wrapped = EncodersResource.load, set[int]()

    def logged(self: Any, stage: Any, settings: Any) -> Any:
        encoder: Any = load(self, stage, settings)
        if id(encoder) in wrapped:
            return encoder
        wrapped.add(id(encoder))
        encode, line = encoder.encode, f"{stage} {encoder.contract.id}\n".encode()

        def encode_logged(batch: Sequence[Any]) -> Any:
            vectors = encode(batch)
            if threading.current_thread().name.startswith("model"):
                os.write(log, line * len(batch))
            return vectors

        encoder.encode = encode_logged
        return encoder

    EncodersResource.load = logged  # type: ignore[method-assign]


def sync(model_log: str, stop: str) -> None:
    """Sync and make manifests again and again; ends once there is a stop file and nothing is left to do."""
    from clipfarm_dagster.cli.manifests import make_manifests
    from clipfarm_dagster.cli.output import dagster_instance
    from clipfarm_dagster.cli.sync import sync_corpus
    from clipfarm_dagster.corpus import Corpus
    from clipfarm_dagster.errors import MetadataError
    from clipfarm_dagster.settings import load_settings
    from clipfarm_dagster.stages import Stage

    log_model_calls(model_log)
    with dagster_instance(load_settings()) as instance:
        while True:
            last = Path(stop).exists()
            corpus = Corpus.open(load_settings())
            try:
                done = sync_corpus(corpus, instance, list(Stage), quiet=True)
            except MetadataError:  # a CSV in a folder changed while it was read
                continue
            made = make_manifests(corpus, instance)
            calls = [e["model_calls"] for e in (*done.stages.values(), *done.candidates.values())]
            if last and not sum(calls) and not any(entry["written"] for entry in made):
                return


def go_back(stage: str) -> None:
    """`clipfarm migrate roll-back`."""
    from clipfarm_dagster.cli.migrate import roll_back
    from clipfarm_dagster.stages import Stage

    roll_back(Stage(stage))


def finish(stage: str) -> None:
    """Finish a cut-over that was broken off."""
    from clipfarm_dagster.corpus import Corpus
    from clipfarm_dagster.maintenance.migration import finish_cut_over
    from clipfarm_dagster.settings import load_settings
    from clipfarm_dagster.stages import Stage

    finish_cut_over(Corpus.open(load_settings()), Stage(stage))


COMMANDS: dict[str, Callable[..., None]] = {"sync": sync, "roll-back": go_back, "finish": finish}


def work(asked: dict[str, Any]) -> None:
    """What a forked process does."""
    code = 1
    try:
        for number, path in enumerate((os.devnull, asked["said"], asked["said"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        os.environ.clear()
        os.environ.update(asked["environment"])
        name, *arguments = asked["command"]
        COMMANDS[name](*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Fork a process for each line."""
    for name in IMPORTED_BEFORE:
        importlib.import_module(name)
    while line := sys.stdin.readline():
        if (process := os.fork()) == 0:
            work(json.loads(line))
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
