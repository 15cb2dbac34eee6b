"""Where everything lies in the store: the keys that other programs rely on, and what a `video_id` may be."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from clipfarm_dagster.errors import InvalidVideoIdError
from clipfarm_dagster.stages import Stage

VIDEO_ID_PATTERN = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}"
"""Regular expression that a whole `video_id` must match; RE2 and Python read it alike."""

_VIDEO_ID = re.compile(VIDEO_ID_PATTERN)


def is_valid_video_id(video_id: str) -> bool:
    """Whether `video_id` may become a key, a path or a partition."""
    return _VIDEO_ID.fullmatch(video_id) is not None


def check_video_id(video_id: str) -> str:
    """Return `video_id` unchanged.

    Raises:
        InvalidVideoIdError: it may not become a key, a path or a partition.
    """
    if not is_valid_video_id(video_id):
        raise InvalidVideoIdError(
            f"video_id {video_id!r} is refused: use 1 to 128 of A-Z a-z 0-9 _ - . and no leading dot"
        )
    return video_id


@dataclass(frozen=True)
class Keys:
    """The keys under one prefix of the store. Every method that takes a `video_id` checks it first."""

    prefix: str = "clipfarm"

    def metadata(self) -> str:
        """Default place of the metadata CSV."""
        return f"{self.prefix}/metadata/shorts_metadata_horizon.csv"

    def raw_folder(self, stage: Stage) -> str:
        """Folder of a stage's raw artifacts, with a slash at the end."""
        return f"{self.prefix}/raw/{stage}/"

    def raw(self, stage: Stage, video_id: str) -> str:
        """The raw artifact that `stage` reads for a video."""
        return f"{self.raw_folder(stage)}{check_video_id(video_id)}{stage.raw_suffix}"

    def embedding_folder(self, stage: Stage) -> str:
        """Folder of a stage's embeddings, with a slash at the end."""
        return f"{self.prefix}/embeddings/{stage}/"

    def embedding(self, stage: Stage, video_id: str) -> str:
        """The `.npy` of a video's embedding."""
        return f"{self.embedding_folder(stage)}{check_video_id(video_id)}.npy"

    def generations_folder(self, stage: Stage) -> str:
        """Folder of the generations of a stage that do not serve, with a slash at the end."""
        return f"{self.prefix}/generations/{stage}/"

    def generation_folder(self, stage: Stage, contract_id: str) -> str:
        """Folder of the vectors of a generation that does not serve, with a slash at the end."""
        return f"{self.generations_folder(stage)}{contract_id}/"

    def generation(self, stage: Stage, contract_id: str, video_id: str) -> str:
        """The `.npy` of a video's embedding in a generation that does not serve."""
        return f"{self.generation_folder(stage, contract_id)}{check_video_id(video_id)}.npy"

    def vector(self, stage: Stage, video_id: str, recorded: str | None) -> str:
        """Where a vector lies: at the key that was recorded, if that is one of this store's, else under
        `embeddings/`."""
        own = (self.embedding_folder(stage), self.generations_folder(stage))
        if recorded is not None and recorded.startswith(own) and recorded.endswith(f"/{video_id}.npy"):
            return recorded
        return self.embedding(stage, video_id)

    def serving(self) -> str:
        """Which generation of each stage serves."""
        return f"{self.prefix}/state/serving.json"

    def erased(self) -> str:
        """Which videos are erased, as keyed hashes, and the key."""
        return f"{self.prefix}/state/erased.json"

    def ledger_snapshot(self, stage: Stage) -> str:
        """Snapshot of a stage's SQLite ledger."""
        return f"{self.prefix}/state/{stage}_embedding.sqlite"

    def ledger_journal_folder(self, stage: Stage) -> str:
        """Folder of the rows written since the snapshot, with a slash at the end."""
        return f"{self.prefix}/state/{stage}_embedding.journal/"

    def corpus_id(self) -> str:
        """The random id by which ledgers know this store and prefix."""
        return f"{self.prefix}/state/corpus.json"

    def probe(self, name: str) -> str:
        """An object that is written to see whether that is possible, and removed at once."""
        return f"{self.prefix}/state/probe-{name}"

    def model_content(self, stage: Stage, model_name: str, revision: str) -> str:
        """What the files of a hub model at a revision hold, by hash."""
        name = hashlib.sha256(f"{model_name}@{revision}".encode()).hexdigest()[:16]
        return f"{self.prefix}/state/models/{stage}/{name}.json"

    def rates_folder(self, stage: Stage, contract_id: str) -> str:
        """Folder of how fast nodes were under a contract, with a slash at the end."""
        return f"{self.prefix}/state/rates/{stage}/{contract_id}/"

    def rate(self, stage: Stage, contract_id: str, kind: str) -> str:
        """How fast nodes of one kind were."""
        name = hashlib.sha256(kind.encode()).hexdigest()[:16]
        return f"{self.rates_folder(stage, contract_id)}{name}.json"

    def manifests_folder(self) -> str:
        """Folder of the manifests, with a slash at the end."""
        return f"{self.prefix}/manifests/"

    def manifest(self, stage: Stage) -> str:
        """A modality's manifest."""
        return f"{self.manifests_folder()}{stage}.parquet"

    def fused_folder(self) -> str:
        """Folder of the fused manifests of all strategies, with a slash at the end."""
        return f"{self.prefix}/fused/"

    def fused_manifest(self, strategy: str) -> str:
        """The fused manifest of one strategy."""
        return f"{self.fused_folder()}{strategy}/fused_manifest.parquet"

    def canary_folder(self, stage: Stage, contract_id: str) -> str:
        """Folder of what the canary gave under a contract, with a slash at the end."""
        return f"{self.prefix}/canary/{stage}/{contract_id}/"

    def canary_baseline(self, stage: Stage, contract_id: str) -> str:
        """What the canary is compared with."""
        return f"{self.canary_folder(stage, contract_id)}baseline.npz"

    def canary_agreement(self, stage: Stage, contract_id: str, environment_id: str) -> str:
        """The environment in which the canary last agreed with the baseline, in full, and when."""
        return f"{self.canary_folder(stage, contract_id)}{environment_id}.json"
