"""Where everything lies in the home folder of a machine, as `keys` says it of the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipfarm_dagster.stages import Stage


@dataclass(frozen=True)
class Home:
    """The files of one machine."""

    folder: Path

    @property
    def state(self) -> Path:
        """The folder of the ledgers, and of what else must not be lost between runs."""
        return self.folder / "state"

    def ledger(self, stage: Stage) -> Path:
        """The SQLite ledger of a stage."""
        return self.state / f"{stage}_embedding.sqlite"

    @property
    def model_revisions(self) -> Path:
        """What branches and tags of models stood for when they were last looked up."""
        return self.state / "model_revisions.json"

    @property
    def model_folders(self) -> Path:
        """Which folders of this machine hold which models."""
        return self.state / "model_folders.json"

    @property
    def erasing(self) -> Path:
        """What is being erased by this machine; gone once nothing is left."""
        return self.state / "erasing.json"

    @property
    def erased(self) -> Path:
        """Which erased videos this folder has nothing of any more."""
        return self.state / "erased.json"

    @property
    def cache(self) -> Path:
        """The folder of all that can be made anew."""
        return self.folder / "cache"

    @property
    def metadata_cache(self) -> Path:
        """The folder of the latest metadata rows."""
        return self.cache

    @property
    def manifests_cache(self) -> Path:
        """The folder of local copies of manifests, and of what is built from them."""
        return self.cache / "manifests"

    def vectors(self, stage: Stage, contract_id: str) -> Path:
        """The file with all vectors of a stage under a contract."""
        return self.manifests_cache / f"vectors-{stage}-{contract_id}.parquet"

    def fused_vectors(self, strategy: str, contract_id: str) -> Path:
        """The file with the vectors that a strategy would give if another generation served."""
        return self.manifests_cache / f"fused-{strategy}-{contract_id}.parquet"

    @property
    def thumbnails(self) -> Path:
        """The folder of the atlas' thumbnails."""
        return self.cache / "thumbnails"

    def canary_mark(self, stage: Stage, contract_id: str, environment_id: str) -> Path:
        """The file that says that the canary of a contract was checked in an environment."""
        return self.folder / "canary" / f"{stage}-{contract_id}-{environment_id}"

    @property
    def dagster(self) -> Path:
        """The folder of ClipFarm's own Dagster instance."""
        return self.folder / "dagster"

    @property
    def sync_lock(self) -> Path:
        """The lock that `clipfarm sync` holds."""
        return self.folder / "sync.lock"

    @property
    def store(self) -> Path:
        """The default store."""
        return self.folder / "store"
