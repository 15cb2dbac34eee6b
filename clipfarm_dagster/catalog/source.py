"""Where the metadata CSV lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipfarm_dagster.errors import MetadataError
from clipfarm_dagster.store import ObjectStore

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class MetadataSource:
    """Where the metadata CSV lies."""

    store: ObjectStore
    key: str

    @property
    def url(self) -> str:
        """The CSV's place, for messages."""
        return f"{self.store.url}/{self.key}"

    @property
    def path(self) -> Path | None:
        """The CSV's file, where the store is a folder."""
        return None if self.store.url.startswith("s3://") else Path(self.store.url) / self.key

    def etag(self) -> str:
        """The CSV's current version.

        Raises:
            MetadataError: there is no such file.
            StoreError: the store cannot be read.
        """
        info = self.store.head(self.key)
        if info is None:
            raise MetadataError(
                self.url, "there is no such file; put the CSV there, or set CLIPFARM_METADATA_URL"
            )
        return info.etag
