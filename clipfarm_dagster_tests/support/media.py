"""Where the shared test media lie: beside the checkout, or where `SHARED_FOLDER` says."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("SHARED_FOLDER", REPOSITORY.parent / "shared"))
