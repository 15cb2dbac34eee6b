"""What a node is, whether or not it can load a model."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("clipfarm-dagster", "ray", "torch", "transformers")
_MEMORY = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class NodeFacts:
    """What a node's process can tell at once."""

    versions: Mapping[str, str]
    """Of Python and of the packages that are there."""
    free_memory_bytes: int | None
    """Before a model is loaded; None where it cannot be told."""

    @classmethod
    def of_this_process(cls) -> NodeFacts:
        """Those of this host and its virtual environment."""
        versions = {"python": platform.python_version()}
        for name in _PACKAGES:
            with contextlib.suppress(PackageNotFoundError):
                versions[name] = version(name)
        return cls(versions, free_memory_bytes(_MEMORY, _CONTAINER))


def free_memory_bytes(memory: Path, container: Path) -> int | None:
    """Memory that processes could still take: of the machine, or of the container if that leaves less.

    Args:
        memory: Linux's `/proc/meminfo`.
        container: the folder of the control group, version 2.
    """
    with contextlib.suppress(OSError, KeyError, ValueError):
        free = 1024 * int(_fields(memory)["MemAvailable:"])
        with contextlib.suppress(OSError, KeyError, ValueError):  # no container, or one without a limit
            limit = int((container / "memory.max").read_text())
            used = int((container / "memory.current").read_text())
            # files that were read count as used, and give way
            free = min(free, limit - used + int(_fields(container / "memory.stat")["inactive_file"]))
        return max(0, free)
    return None


def _fields(file: Path) -> dict[str, str]:
    return {words[0]: words[1] for words in map(str.split, file.read_text().splitlines()) if len(words) > 1}
