"""What a person sees of one raw object, made anew without its model."""

from __future__ import annotations

from clipfarm_dagster.engine.local.preparation import Limits, preparation
from clipfarm_dagster.engine.options import EngineOptions
from clipfarm_dagster.errors import PreparationError
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.modalities.registry import MODALITIES
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys


def make_preview(
    stage: Stage, item: WorkItem, store: ObjectStore, keys: Keys, settings: Settings
) -> str | None:
    """The preview of one item as a run that embeds it makes it: Markdown. Foreign bytes are decoded in a
    process of their own.

    Args:
        settings: those of the contract whose preparation is to be seen.

    Raises:
        StoreError: the raw object is not there, or cannot be read.
        InvalidRawObjectError: it cannot be decoded.
        PreparationError: it is too large, or decoding took too long or too much.
    """
    modality, options = MODALITIES[stage], EngineOptions.from_settings(settings)
    most_bytes, setting = options.object_limit(stage)
    key = keys.raw(stage, item.video_id)
    stored = store.get(key, max_bytes=most_bytes)
    if stored.info.size > most_bytes:
        raise PreparationError(f"{key!r} has {stored.info.size} bytes, more than {setting}={most_bytes}")
    limits = Limits(options.item_timeout_seconds, options.max_prepare_bytes)
    with preparation(
        modality.previewer(settings), limits, workers=1, previews=True, isolated=modality.isolated
    ) as prepare:
        return prepare.result(prepare.submit(stored.data, item.metadata)).prepared.preview
