"""What this machine remembers of models: small JSON files of names and what they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from clipfarm_dagster.errors import SettingsError
from clipfarm_dagster.store.whole_files import written_whole


def recall(record: Path, name: str) -> str | None:
    """What a name stands for in the file `record`, or None.

    Raises:
        SettingsError: the file cannot be read.
    """
    return _read(record).get(name)


def remember(record: Path, name: str, value: str) -> None:
    """Write down what a name stands for now, in place of what it stood for before.

    Raises:
        SettingsError: the file cannot be read.
    """
    if recall(record, name) != value:
        with _changed(record) as entries:
            entries[name] = value


def remembered(record: Path, name: str, find: Callable[[], str]) -> str:
    """What a name stands for; `find` tells it once and for all where that is not written down yet.

    Raises:
        SettingsError: the file cannot be read.
    """
    entries = _read(record)
    if name not in entries:
        with _changed(record) as entries:  # others may have found it meanwhile
            if name not in entries:
                entries[name] = find()
    return entries[name]


@contextmanager
def _changed(record: Path) -> Iterator[dict[str, str]]:
    """The entries, which are written when the block ends well; other processes and threads wait."""
    record.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{record}.lock"):
        entries = _read(record)
        yield entries
        with written_whole(record) as part:
            part.write_text(json.dumps(entries, indent=2, sort_keys=True))


def _read(record: Path) -> dict[str, str]:
    if not record.exists():
        return {}
    try:
        return {str(name): str(value) for name, value in json.loads(record.read_text()).items()}
    except (ValueError, AttributeError) as error:
        raise SettingsError(
            f"{record}, which records what names of models stand for, cannot be read ({error}); repair or"
            " delete it"
        ) from None
