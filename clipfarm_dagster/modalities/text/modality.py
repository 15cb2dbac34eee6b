"""The text modality, described."""

from __future__ import annotations

from pathlib import Path

from clipfarm_dagster.checkpoints.checkpoint import Checkpoint
from clipfarm_dagster.checkpoints.dimension import sentence_dimension
from clipfarm_dagster.modalities.modality import CanaryInput, Modality
from clipfarm_dagster.modalities.text.cut import LONGEST_TEXT
from clipfarm_dagster.modalities.text.encoder import PREPROCESS_VERSION, TextEncoder, TextPreparer
from clipfarm_dagster.settings import Settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.vectors.contract import Contract


def _load(
    contract: Contract, settings: Settings, checkpoint: Checkpoint, folder: Path, device: str
) -> TextEncoder:
    return TextEncoder(contract, settings.text, checkpoint, folder, device)


def _dimension(checkpoint: Checkpoint) -> int | None:
    of_one_text = sentence_dimension(checkpoint)
    return None if of_one_text is None else 2 * of_one_text


_DESCRIPTION = """MiniLM over each video's metadata (title, description, query) and transcript, side by side.

One vector per video, `{folder}/<video_id>.npy`: float32 of unit length. The preview of a partition
that was materialized alone shows the texts. `embedding_sensor` keeps it up to date."""

TEXT = Modality(
    stage=Stage.TEXT,
    embedding_description=_DESCRIPTION,
    raw_description="Transcripts, `raw/text/<video_id>.json` in the store, with the field `transcript`. Made"
    " elsewhere and observed here: the data version of a partition is its object's ETag.",
    preprocess_name="metadata-sep-transcript",
    preprocess_version=PREPROCESS_VERSION,
    preprocess_params=lambda settings: {"longest_text": LONGEST_TEXT},
    pooling=lambda settings: "concat",
    deciding_settings=lambda contract: {},
    load=_load,
    dimension=_dimension,
    previewer=lambda settings: TextPreparer(),
    isolated=False,
    worker_imports=("clipfarm_dagster.modalities.previews", "clipfarm_dagster.modalities.text.encoder"),
    size_limits=("max_object_bytes", "max_text_bytes"),
    # Characters and token ids are equal or they are not.
    canary=CanaryInput(file="text.json", decoded_tolerance=0.0, prepared_tolerance=0.0),
)
