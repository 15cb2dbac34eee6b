"""The shipped Dagster instance: settings and an event log that fit many small partitions."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

SETTINGS_FILE = "dagster.yaml"

LOCATION_NAME = "clipfarm"
"""Name of the code location in the workspace below, by which Dagster's UI finds the jobs of a run."""

WORKSPACE = Path(__file__).with_name("workspace.yaml")
"""The workspace of `clipfarm dev`. The repository's own is the same, so that sensors keep their state
whichever of the two is used."""

POSTGRES_SETTINGS = Path(__file__).with_name("dagster-postgres.yaml")
"""`dagster.yaml` of an instance on the PostgreSQL server of the ledgers."""


def ensure_instance(home: Path) -> Path:
    """Make `home` a folder that may serve as `DAGSTER_HOME`, and return it as an absolute path.

    Settings that stand there already are left alone.
    """
    home = home.expanduser().resolve()
    home.mkdir(parents=True, exist_ok=True)
    settings = home / SETTINGS_FILE
    if not settings.exists():
        part = home / f".{SETTINGS_FILE}.{os.getpid()}"  # half a file, or an empty one, would stay for good
        try:
            part.write_text(
                (files(__package__) / SETTINGS_FILE).read_text(encoding="utf-8"), encoding="utf-8"
            )
            part.replace(settings)
        finally:
            part.unlink(missing_ok=True)
    return home
