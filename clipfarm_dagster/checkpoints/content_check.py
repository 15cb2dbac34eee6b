"""Whether a hub model's files on this machine are those that the corpus knows under its revision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.checkpoints.content import combined_hash, downloaded_hashes
from clipfarm_dagster.errors import (
    ModelDiffersError,
    ModelUnavailableError,
    ObjectMissingError,
    PreconditionFailedError,
)
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys


def check_content(checkpoint: Checkpoint, store: ObjectStore, keys: Keys) -> None:
    """Have a hub model's files on this machine, and compare them with what the store has recorded of them.

    The first machine of a corpus that uses the model records its content. The revision of a local folder is
    its content, so that there is nothing to compare.

    Raises:
        ModelUnavailableError: the files cannot be had, or are others than those recorded; or the record
            cannot be read.
        StoreError: the store cannot be read or written.
    """
    folder = checkpoint.download()
    if checkpoint.is_local:
        return
    hashes = downloaded_hashes(folder)
    key = keys.model_content(checkpoint.stage, checkpoint.model_name, checkpoint.revision)
    try:
        stored = store.get(key)
    except ObjectMissingError:
        record = {"model": checkpoint.model_name, "revision": checkpoint.revision, "files": hashes}
        try:
            store.put_if_unchanged(key, json.dumps(record, indent=1).encode(), None)
            return
        except PreconditionFailedError:  # another machine was first, by a moment
            stored = store.get(key)
    recorded = _recorded_hashes(stored.data, key, store)
    if recorded != hashes:
        raise ModelDiffersError(_difference(checkpoint, folder, hashes, recorded, key, store))


def _recorded_hashes(data: bytes, key: str, store: ObjectStore) -> dict[str, str]:
    try:
        return {str(name): str(content) for name, content in json.loads(data)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnavailableError(
            f"{store.url}: {key!r}, which records the content of a model, cannot be read"
            f" ({type(error).__name__}: {error}); put it back from a backup, or delete it if this machine has"
            " the right model: it is then recorded anew"
        ) from None


def _difference(
    checkpoint: Checkpoint,
    folder: Path,
    hashes: Mapping[str, str],
    recorded: Mapping[str, str],
    key: str,
    store: ObjectStore,
) -> str:
    names = sorted(name for name in {*hashes, *recorded} if hashes.get(name) != recorded.get(name))
    shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
    into = f" --local-dir {folder}" if checkpoint.path else ""
    return (
        f"the {checkpoint.stage} model {checkpoint.model_name} at {checkpoint.revision} in {folder} is not"
        f" what {store.url} has recorded of it: its content is {combined_hash(hashes)}, and {key!r} has"
        f" {combined_hash(recorded)} (different, missing or added: {shown}). Nothing was written with it."
        f" Fetch all files of that revision again (`hf download {checkpoint.model_name} --revision"
        f" {checkpoint.revision} --force-download{into}`); or, if these are right and what was recorded is"
        " not, delete that object"
    )
