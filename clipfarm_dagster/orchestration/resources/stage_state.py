"""The ledgers as a Dagster resource."""

import dagster as dg
from pydantic import Field

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource, told
from clipfarm_dagster.settings import load_settings


class StageStateResource(dg.ConfigurableResource["StageStateResource"]):
    """Which ledgers tell what is done. Nothing is opened before a method is called."""

    # Dependencies, not config: config could be overridden by whoever launches a run.
    home: dg.ResourceDependency[str | None] = Field(
        default=None,  # type: ignore[arg-type]
        description="Folder of local state; by default the setting CLIPFARM_HOME.",
    )
    state_url: dg.ResourceDependency[str | None] = Field(
        default=None,  # type: ignore[arg-type]
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
            home=told(self.home),
            state_url=told(self.state_url),
            store_url=told(object_store.url),
            prefix=told(object_store.prefix),
        )
        return Corpus(settings, store)
