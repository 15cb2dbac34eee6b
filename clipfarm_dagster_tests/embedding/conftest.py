"""Fixtures of the embedding tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfarm_dagster.stages import Stage
from clipfarm_dagster_tests.embedding.models import make_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Stage, Path]:
    """One small checkpoint a stage."""
    return make_models(tmp_path_factory.mktemp("models"))
