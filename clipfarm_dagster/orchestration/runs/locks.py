"""A lock for each run, which its process holds while it lives: what tells a run at work from a dead one.

Process ids mean nothing in another container, nor after a restart of the machine. The kernel frees a file
lock (flock) when its process ends, however it ends, and shows it to every process that has the folder.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from clipfarm_dagster.orchestration.dagster_internals import keeps_runs_in_sqlite

_SUFFIX = ".lock"
_held: dict[Path, int] = {}
"""Open files by path, so that they stay locked; of this process."""


def lock_folder(instance: dg.DagsterInstance) -> Path | None:
    """Where the locks of an instance lie. None where runs may be of other machines: Dagster's own monitoring
    tells there which are dead."""
    if not keeps_runs_in_sqlite(instance):
        return None
    return Path(instance.root_directory) / "run_locks"


def lock_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Take the lock of a run that this process is about to execute, until `unlock_run` or the process's end.

    Raises:
        OSError: the folder cannot be written, or its file system has no locks.
    """
    folder = lock_folder(instance)
    if folder is None or (path := folder / f"{run_id}{_SUFFIX}") in _held:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # locked before it has its name, so that whoever finds it finds it locked
    unnamed = folder / f"{run_id}.{os.getpid()}.new"
    file = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        unnamed.rename(path)
    except OSError:
        os.close(file)
        raise
    _held[path] = file


def unlock_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Remove a run's lock, after its end has been recorded."""
    folder = lock_folder(instance)
    if folder is None or (path := folder / f"{run_id}{_SUFFIX}") not in _held:
        return
    path.unlink(missing_ok=True)
    os.close(_held.pop(path))


def has_lock(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a process has taken a run's lock, be it alive or dead."""
    folder = lock_folder(instance)
    return folder is not None and (folder / f"{run_id}{_SUFFIX}").exists()


def freed_runs(instance: dg.DagsterInstance) -> Iterator[str]:
    """Ids of the runs whose process took the lock and is gone. Each is locked while the caller looks at it,
    and forgotten afterwards."""
    folder = lock_folder(instance)
    if folder is None or not folder.is_dir():
        return
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        if path in _held:
            continue
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path.name.removesuffix(_SUFFIX)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            pass  # its process is alive, or another one looks at it
        finally:
            os.close(file)
