"""Where bytes of an erased video are left: in a store's objects and in the files of a folder."""

from __future__ import annotations

import gzip
from collections.abc import Collection
from pathlib import Path

from clipfarm_dagster.store import ObjectStore


def traces(needles: Collection[str], store: ObjectStore, *folders: Path) -> list[str]:
    """Objects and files that have one of some texts in their names or bytes, with what gzip has packed."""
    keys = store.list()["key"].to_pylist()
    held = {f"{store.url}: {key}": store.get(key).data for key in keys}
    for folder in folders:
        held |= {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return sorted(
        name
        for name, data in held.items()
        for needle in needles
        if needle in name or needle.encode() in (gzip.decompress(data) if name.endswith(".gz") else data)
    )
