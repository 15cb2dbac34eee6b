"""Dagster's PostgreSQL event log, with the status of partitions in memory.

Tables are Dagster's own; beside them is one small table that triggers count in. Configured in `dagster.yaml`:

    event_log_storage:
      module: clipfarm_dagster.instance.postgres_event_log
      class: KeptPostgresEventLogStorage
      config:
        postgres_url: {env: DAGSTER_POSTGRES_URL}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster._serdes import ConfigurableClassData
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import get_token_provider_from_config, pg_url_from_config

from clipfarm_dagster.instance.kept_partitions import KeptPartitions


class KeptPostgresEventLogStorage(KeptPartitions, PostgresEventLogStorage):
    """Dagster's PostgreSQL event log that answers from memory which keys there are, and what became of each.

    The configuration is that of `dagster_postgres.PostgresEventLogStorage`.
    """

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> KeptPostgresEventLogStorage:
        return cls(
            inst_data=inst_data,
            postgres_url=pg_url_from_config(config_value),
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
            token_provider=get_token_provider_from_config(config_value),
        )

    @property
    def _database(self) -> str:
        return self.postgres_url
