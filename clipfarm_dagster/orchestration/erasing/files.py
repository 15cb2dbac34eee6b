"""Takes ids out of the files of a Dagster instance that are not databases: compute logs and other text."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TextIO

import dagster as dg

from clipfarm_dagster.errors import ErasureError
from clipfarm_dagster.maintenance.id_text import IdText, is_word
from clipfarm_dagster.maintenance.scanning import bytes_hold
from clipfarm_dagster.store.whole_files import written_whole

_DATABASE_FILES = re.compile(r".*\.db(-wal|-shm|-journal)?")
_HEAD = 8192
"""Bytes that tell whether a file is text."""


def instance_folders(instance: dg.DagsterInstance) -> list[Path]:
    """The folder of an instance, and that of its compute logs where it lies elsewhere."""
    from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

    folders = [Path(instance.root_directory)]
    if isinstance(instance.compute_log_manager, LocalComputeLogManager):
        folders.append(Path(instance.compute_log_manager._base_dir))
    found: list[Path] = []
    for folder in (folder.resolve() for folder in folders):
        if not any(folder.is_relative_to(other) for other in found):
            found.append(folder)
    return found


def out_of_reach(instance: dg.DagsterInstance) -> tuple[str, ...]:
    """The compute logs of an instance that keeps them in no folder, as a bucket."""
    from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
    from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager

    manager = instance.compute_log_manager
    if isinstance(manager, (LocalComputeLogManager, NoOpComputeLogManager)):
        return ()
    return (f"compute logs of {type(manager).__name__}",)


def clear_files(
    folder: Path,
    ids_of: Callable[[Path], IdText],
    *,
    besides: Collection[Path] = (),
    dry_run: bool = False,
) -> tuple[int, int]:
    """Replace ids in the text files of a folder, and remove the files that have one as their name, less a
    suffix: what an IO manager keeps of a partition.

    Args:
        folder: of the instance.
        ids_of: the ids that may be replaced in a file.
        besides: folders in it that are left alone.
        dry_run: whether only to count.

    Returns:
        How many files were changed, and how many removed.

    Raises:
        ErasureError: a file cannot be read or written.
    """
    changed = removed = 0
    for path in _files(folder, besides):
        ids = ids_of(path)
        try:
            if any(start == 0 and not is_word(video_id) for start, _, video_id in ids.spans(path.name)):
                if not dry_run:
                    path.unlink(missing_ok=True)
                removed += 1
            elif bytes_hold(path, ids) and _is_text(path):
                changed += _has_lines(path, ids) if dry_run else _replaced(path, ids)
        except FileNotFoundError:
            continue  # gone meanwhile
        except OSError as error:
            raise ErasureError(f"{path}: {error.strerror or error}; free it, and repeat") from error
    return changed, removed


def _files(folder: Path, besides: Collection[Path]) -> Iterator[Path]:
    left_alone = [one.resolve() for one in besides]
    for path in sorted(folder.rglob("*")):
        if any(path.is_relative_to(one) for one in left_alone):
            continue
        if path.is_file() and not path.is_symlink() and not _DATABASE_FILES.fullmatch(path.name):
            yield path


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" not in file.read(_HEAD)


def _replaced(path: Path, ids: IdText) -> bool:
    """Write a file anew if it has ids; line by line, for a log may be long. Bytes that are no UTF-8 stay."""
    if not _has_lines(path, ids):
        return False
    with _lines(path) as lines, written_whole(path) as part:
        with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as output:
            output.writelines(_in_line(line, ids) for line in lines)
        shutil.copystat(path, part)
    return True


def _has_lines(path: Path, ids: IdText) -> bool:
    with _lines(path) as lines:
        return any(_in_line(line, ids) != line for line in lines)


def _lines(path: Path) -> TextIO:
    return path.open(encoding="utf-8", errors="surrogateescape", newline="")


def _in_line(line: str, ids: IdText) -> str:
    body = line.rstrip("\r\n")
    return ids.replaced_value(body) + line[len(body) :]
