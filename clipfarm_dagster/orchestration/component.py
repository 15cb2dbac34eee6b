"""ClipFarm as a component: one corpus in a `defs.yaml`."""

from typing import Any

import dagster as dg
from pydantic import Field

from clipfarm_dagster.orchestration.assembling import build_definitions

__all__ = ["ClipFarmComponent"]


class ClipFarmComponent(dg.Component, dg.Model, dg.Resolvable):
    """One corpus of short videos with its embeddings; `build_definitions` says more of each attribute."""

    key_prefix: str | list[str] = Field(
        default_factory=list, description="First part or parts of every asset key and name."
    )
    group_prefix: str | None = Field(
        None, description="First part of the asset groups' names; by default the key prefix."
    )
    partitions_name: str | None = Field(
        None, description="Name of the dynamic partitions; by default `video_id` after the key prefix."
    )
    settings: dict[str, Any] | None = Field(
        None, description="Settings of this corpus, which win over the environment."
    )
    resource_overrides: dict[str, Any] | None = Field(
        None, description="Resources that replace ClipFarm's, as template variables such as `'{{ store }}'`."
    )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The definitions of the corpus."""
        return build_definitions(
            key_prefix=self.key_prefix,
            group_prefix=self.group_prefix,
            partitions_name=self.partitions_name,
            settings=self.settings,
            resource_overrides=self.resource_overrides,
        )
