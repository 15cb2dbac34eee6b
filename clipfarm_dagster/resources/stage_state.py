"""The ledgers as a Dagster resource."""

import dagster as dg
from pydantic import Field

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.resources.object_store import ObjectStoreResource
from clipfarm_dagster.settings import load_settings


class StageStateResource(dg.ConfigurableResource["StageStateResource"]):
    """Which ledgers tell what is done. Nothing is opened before a method is called."""

    home: str | None = Field(
        default=None, description="Folder of local state; by default the setting CLIPFARM_HOME."
    )
    state_url: str | None = Field(
        default=None,
        description="`postgresql://…` for a shared ledger; by default the setting CLIPFARM_STATE_URL, and"
        " where that is empty SQLite files in the home folder.",
    )

    def corpus(self, object_store: ObjectStoreResource) -> Corpus:
        """The corpus of a store with these ledgers.

        Raises:
            SettingsError: a setting is unusable.
            StoreError: a folder cannot be created.
        """
        store = object_store.open()
        settings = load_settings(
            home=self.home, state_url=self.state_url, store_url=object_store.url, prefix=object_store.prefix
        )
        return Corpus(settings, store)
