"""Whether all is there that embedding needs: store, metadata, ledgers, models, device, codecs, clock, disk.

What is wrong says what to do about it. Looking leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.errors import ClipFarmError, PreconditionFailedError, StoreError
from clipfarm_dagster.modalities.registry import resolve_device, stage_checkpoint
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore, S3Options, local_path

CLOCK_SECONDS = 30.0
"""A clock that differs more from the store's is called wrong; S3 itself refuses a quarter of an hour."""
_GIVE_UP_SECONDS = 10.0
"""For how long a store is tried that does not answer; work itself is more patient."""
LEAST_FREE_BYTES = 2**30
_DECODERS = ("h264", "hevc", "vp9", "av1", "aac")


@dataclass(frozen=True)
class Finding:
    """What was found of one thing."""

    what: str
    well: bool
    told: str
    """What there is; or what is wrong, and what to do about it."""


class _WrongError(Exception):
    """What was looked at is not as it should be."""


def find_health(settings: Settings, *, home: Path) -> Iterator[Finding]:
    """Look at everything, one after the other. Where the store cannot be used, nothing is said of what is in
    it.

    Args:
        home: the home folder of the installation; that of `settings` may be another, for copies.
    """
    folder = local_path(settings.store_url)
    if folder is not None and not folder.is_dir():
        yield Finding("store", False, f"there is no folder {folder}; create it, or set CLIPFARM_STORE_URL")
    else:
        store = ObjectStore.open(settings.store_url, s3=S3Options(give_up_seconds=_GIVE_UP_SECONDS))
        corpus = Corpus(settings, store)
        reached = _found("store", partial(_store, corpus))
        yield reached
        if reached.well:
            yield _found("clock", partial(_clock, corpus))
            yield _found("metadata", partial(_metadata, corpus))
            for stage in Stage:
                yield _found(f"{stage} ledger", partial(_ledger, corpus, stage))
    for stage in Stage:
        yield _found(f"{stage} model", partial(_model, stage, settings))
    yield _found("device", partial(_device, settings))
    yield _found("ffmpeg libraries", _ffmpeg)
    yield _found("disk", partial(_disk, [home, folder, Path(tempfile.gettempdir())]))


def _found(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, check())
    except (_WrongError, ClipFarmError, OSError, ImportError) as error:
        return Finding(what, False, str(error))


def _store(corpus: Corpus) -> str:
    """That it can be read and written, and that of two who write at once one is told."""
    store, key = corpus.store, corpus.keys.probe(uuid.uuid4().hex)
    store.put_if_unchanged(key, b"clipfarm doctor", None)
    try:
        store.put_if_unchanged(key, b"another", None)
    except PreconditionFailedError:
        pass
    else:
        raise _WrongError(
            f"{store.url} lets a conditional put overwrite an object, so that two machines can lose each"
            " other's rows; use a store with conditional writes (If-None-Match), or one machine alone"
        )
    finally:
        store.delete(key)
    place = "" if store.endpoint is None else f" at {store.endpoint}"
    return f"{store.url}{place} can be read and written"


def _clock(corpus: Corpus) -> str:
    store, key = corpus.store, corpus.keys.probe(uuid.uuid4().hex)
    before = datetime.now(UTC)
    store.put(key, b"clipfarm doctor")
    try:
        after, info = datetime.now(UTC), store.head(key)
    finally:
        store.delete(key)
    if info is None:
        raise StoreError(f"{store.url}: {key!r} was written and is not there; try again")
    ahead = clock_ahead(before, info.last_modified, after)
    if abs(ahead) > CLOCK_SECONDS:
        raise _WrongError(
            f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the store's;"
            " set it by NTP (such as `timedatectl set-ntp true`), or retries come at the wrong time, and S3"
            " refuses requests from a quarter of an hour on"
        )
    return "agrees with the store's" if abs(ahead) < 2 else f"{abs(ahead):.0f} s from the store's"


def clock_ahead(before: datetime, there: datetime, after: datetime) -> float:
    """Seconds by which this machine's clock is ahead of the store's, as far as a time of the store that lies
    between two of ours shows it, and S3's times are whole seconds."""
    if (early := (before - there).total_seconds()) > 1:
        return early - 1
    return min(0.0, (after - there).total_seconds())


def _metadata(corpus: Corpus) -> str:
    latest, url = corpus.latest_rows(), corpus.metadata.url
    if not latest.videos:
        raise _WrongError(f"{url} has no videos; add rows, or set CLIPFARM_METADATA_URL to another file")
    return f"{latest.videos:,} videos in {url}"


def _ledger(corpus: Corpus, stage: Stage) -> str:
    with corpus.ledger(stage) as ledger:
        rows = f"{sum(ledger.counts().values()):,} rows"
        return f"{rows} in PostgreSQL" if corpus.settings.state_url else f"{rows}, up to date with the store"


def _model(stage: Stage, settings: Settings) -> str:
    checkpoint = stage_checkpoint(stage, settings)
    name = f"{checkpoint.model_name} at {checkpoint.revision.removeprefix('sha256:')[:12]}"
    if (folder := checkpoint.on_this_machine()) is not None:
        return f"{name} in {folder}"
    checkpoint.check_on_hub()
    return f"{name} is not here yet; the hub has it, and the first sync fetches it"


def _device(settings: Settings) -> str:
    import torch

    device = resolve_device(settings.device)
    if torch.device(device).type != "cuda":
        none = "" if torch.cuda.is_available() else ", there is no GPU that torch sees"
        return f"{device} ({os.cpu_count()} cores{none})"
    properties = torch.cuda.get_device_properties(device)
    return f"{device}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _ffmpeg() -> str:
    import av
    import soundfile

    if missing := [name for name in _DECODERS if name not in av.codecs_available]:
        raise _WrongError(
            f"PyAV {av.__version__} cannot decode {', '.join(missing)}; install its wheel from the package"
            " index (`pip install --force-reinstall --only-binary av av`), which has ffmpeg's libraries"
        )
    version = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"libavcodec {version} of PyAV {av.__version__}, {soundfile.__libsndfile_version__} of libsndfile"


def _disk(folders: list[Path | None]) -> str:
    found: dict[int, tuple[Path, int]] = {}
    for folder in folders:
        while folder is not None and not folder.is_dir():
            folder = folder.parent
        if folder is not None:
            if not os.access(folder, os.W_OK):
                raise _WrongError(
                    f"{folder} cannot be written to; give this user the right, or set CLIPFARM_HOME"
                )
            found.setdefault(folder.stat().st_dev, (folder, shutil.disk_usage(folder).free))
    short = [
        f"{folder} ({free / 2**30:.1f} GiB)" for folder, free in found.values() if free < LEAST_FREE_BYTES
    ]
    if short:
        raise _WrongError(
            f"little room is left in {', '.join(short)}; make room, or set CLIPFARM_HOME, CLIPFARM_STORE_URL"
            " or TMPDIR to another disk"
        )
    return ", ".join(f"{free / 2**30:.0f} GiB free in {folder}" for folder, free in found.values())
