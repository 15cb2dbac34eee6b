"""What a machine keeps of erasures in its home folder: what it has begun, and how far the folder is clean."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, fields

from filelock import FileLock

from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store.home import Home
from clipfarm_dagster.store.whole_files import SCRATCH_PREFIX, written_whole


@dataclass(frozen=True)
class Begun:
    """What this machine has begun to erase and not ended. It names the videos, and is gone in the end."""

    video_ids: frozenset[str] = frozenset()
    raw: frozenset[str] = frozenset()
    """Those whose raw objects go too."""
    runs: frozenset[str] = frozenset()
    """Dagster's runs that may have the videos in hand: all is looked through again once they have ended."""


class ErasureNotes:
    """The notes of one home folder."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def begun(self) -> Begun:
        """What was begun; nothing where all is ended."""
        try:
            told = json.loads(self._home.erasing.read_bytes())
        except FileNotFoundError:
            return Begun()
        return Begun(*(frozenset(map(str, told[field.name])) for field in fields(Begun)))

    def begin(
        self, video_ids: Collection[str], *, raw: Collection[str] = (), runs: Collection[str] = ()
    ) -> Begun:
        """Note what is about to be done, besides what was begun before; returns all of it."""
        with self._locked():
            now = self.begun()
            begun = Begun(now.video_ids.union(video_ids), now.raw.union(raw), now.runs.union(runs))
            if begun != now:
                self._write(begun)
            return begun

    def end(self, done: Begun) -> None:
        """Forget what is done; what was begun meanwhile stays."""
        with self._locked():
            now = self.begun()
            left = Begun(*(getattr(now, f.name) - getattr(done, f.name) for f in fields(Begun)))
            if left.video_ids:
                self._write(left)
            else:
                self._home.erasing.unlink(missing_ok=True)

    def _write(self, begun: Begun) -> None:
        told = {field.name: sorted(getattr(begun, field.name)) for field in fields(begun)}
        with written_whole(self._home.erasing) as part:
            part.write_text(json.dumps(told))

    def _locked(self) -> FileLock:
        self._home.state.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self._home.erasing}.lock")

    @property
    def clean_of(self) -> str:
        """The version of the tombstones of whose videos this folder has nothing; empty if of none."""
        with contextlib.suppress(FileNotFoundError):
            return str(json.loads(self._home.erased.read_bytes())["version"])
        return ""

    def mark_clean(self, version: str) -> None:
        """Say that this folder has nothing of the videos of some tombstones."""
        with written_whole(self._home.erased) as part:
            part.write_text(json.dumps({"version": version}))


def clear_caches(home: Home) -> None:
    """Remove all that can be made anew, and what killed processes have left half written. Whoever is about to
    read some of it fails, and can be started again.

    Raises:
        OSError: a file cannot be removed.
    """
    if home.cache.is_dir():  # at once, so that nothing comes to it meanwhile
        home.cache.rename(home.folder / f"{home.cache.name}.{secrets.token_hex(8)}")
    for folder in home.folder.glob(f"{home.cache.name}.*"):
        shutil.rmtree(folder)
    for part in home.state.glob(f"{SCRATCH_PREFIX}*/{home.erasing.name}"):
        shutil.rmtree(part.parent)
    with contextlib.ExitStack() as held:
        scratch = [*home.state.glob(f"{tempfile.gettempprefix()}*")]
        for stage in Stage if scratch else ():  # copies of snapshots, made by whoever holds these
            held.enter_context(FileLock(f"{home.ledger(stage)}.lock"))
        for folder in scratch:
            shutil.rmtree(folder, ignore_errors=True)  # it may have been ended before the lock was had
