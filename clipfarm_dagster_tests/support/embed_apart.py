"""Embeds what a store holds in a process of its own, whose environment says how many threads it has.

Usage: python -m clipfarm_dagster_tests.support.embed_apart STAGE MODEL STORE FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.bench import KEYS, bench


def main() -> None:
    stage, model, store, folder = Stage(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    encoder = load_encoder(stage, load_settings(home=folder, device="cpu", **{stage: {"model": model}}))
    with bench(encoder, ObjectStore.open(store), folder) as made:
        raw = KEYS.raw_folder(stage)
        keys = made.store.list(raw)["key"].to_pylist()
        ids = [key.removeprefix(raw).removesuffix(stage.raw_suffix) for key in keys]
        assert made.run(ids).failed == 0


if __name__ == "__main__":
    main()
