"""The ledgers as a Dagster resource."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import Field

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.orchestration.resources.object_store import ObjectStoreResource, given_settings
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

    settings: dg.ResourceDependency[Mapping[str, Any] | None] = Field(
        default=None,  # type: ignore[arg-type]
        description="Settings that take precedence over the environment; see `given_settings`.",
    )

    def corpus(self, object_store: ObjectStoreResource) -> Corpus:
        """The corpus of a store with these ledgers.

        Raises:
            SettingsError: a setting is unusable.
            StoreError: a folder cannot be created.
        """
        given = given_settings(self.settings, home=self.home, state_url=self.state_url)
        settings = load_settings(**{**given, **object_store.given()})
        return Corpus(settings, object_store.open_url(settings.store_url))
