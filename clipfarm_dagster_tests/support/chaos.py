"""A stage over raw objects of all kinds, whose runs are killed: what goes in, and what should come out."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from clipfarm_dagster.corpus import Corpus
from clipfarm_dagster.demo.checkpoints import make_audio_checkpoint
from clipfarm_dagster.engine.engine import RECORD_EVERY_ITEMS, EngineOptions, LocalComputing, embed_items
from clipfarm_dagster.instance import ensure_instance
from clipfarm_dagster.ledger.ledger import Ledger
from clipfarm_dagster.ledger.rows import WorkItem
from clipfarm_dagster.modalities.registry import load_encoder
from clipfarm_dagster.orchestration.events import materialized_versions
from clipfarm_dagster.orchestration.names import DEFAULT_NAMES
from clipfarm_dagster.orchestration.reconcile import reconcile, unreported_successes
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.support.faults import HANGS, KILLS_ITS_PROCESS
from clipfarm_dagster_tests.support.sounds import wav

STAGE = Stage.AUDIO


@dataclass(frozen=True)
class Chaos:
    """How much goes wrong."""

    items: int
    corrupt: int
    missing: int
    hanging: int
    killing: int
    store_away_seconds: float
    kills: int


def raw_objects(chaos: Chaos) -> dict[str, bytes]:
    """What lies in the store; ids say what it is."""
    good = chaos.items - chaos.corrupt - chaos.missing - chaos.hanging - chaos.killing
    return {
        **{f"good-{n}": wav(0.1 + 0.02 * (n % 5), seed=n) for n in range(good)},
        **{f"corrupt-{n}": wav(0.1, seed=n)[:20] for n in range(chaos.corrupt)},
        **{f"hangs-{n}": HANGS for n in range(chaos.hanging)},
        **{f"kills-{n}": KILLS_ITS_PROCESS for n in range(chaos.killing)},
    }


def corpus_over(store: Mapping[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """A corpus over the store that some settings name; all come from the environment, which runs inherit."""
    for name in [name for name in os.environ if name.startswith(("CLIPFARM_", "AWS_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    checkpoint = make_audio_checkpoint(folder / "audio", hidden_size=64, intermediate_size=64)
    settings = {
        **store,
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "CLIPFARM_HOME": str(folder / "home"),
        "CLIPFARM_AUDIO_MODEL": str(checkpoint),
        "CLIPFARM_DEVICE": "cpu",
        "CLIPFARM_ITEM_TIMEOUT_SECONDS": "3",
        "CLIPFARM_RETRY_SECONDS": "86400",
        "DAGSTER_HOME": str(ensure_instance(folder / "dagster")),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return Corpus.open(load_settings())


def undisturbed(raw: Mapping[str, bytes], folder: Path) -> dict[str, bytes]:
    """The vectors' files after one quiet run over a folder."""
    settings = load_settings(home=folder / "quiet", store_url=str(folder / "quiet" / "store"))
    store, keys = ObjectStore.open(settings.store_url), settings.keys
    store.put_many([(keys.raw(STAGE, name), data) for name, data in raw.items()])
    encoder = load_encoder(STAGE, settings)
    ledger = Ledger.open(STAGE, state_url="", sqlite_path=folder / "quiet" / "audio.sqlite")
    embed_items(
        [WorkItem(name, {}, "", "") for name in raw],
        contract=encoder.contract,
        computing=LocalComputing(lambda: encoder),
        store=store,
        keys=keys,
        ledger=ledger,
        options=EngineOptions.from_settings(settings),
        on_recorded=lambda outcomes: None,
    )
    ledger.close()
    return vectors(Corpus(settings, store))


def check_dagster(corpus: Corpus, columns: pa.Table, healthy: Collection[str], *, kills: int) -> None:
    """Dagster knows of every success of the ledger and of no other, once what kills have left is mended."""
    with dg.DagsterInstance.get() as instance:
        mended = reconcile(corpus, instance, DEFAULT_NAMES, STAGE).mended
        versions = materialized_versions(instance, DEFAULT_NAMES.embedding(STAGE))
    assert mended <= kills * RECORD_EVERY_ITEMS
    assert unreported_successes(columns, versions) == []
    assert versions.keys() == set(healthy)


def vectors(corpus: Corpus) -> dict[str, bytes]:
    """Every vector file in the store, by `video_id`."""
    keys = corpus.store.list(corpus.keys.embedding_folder(STAGE))["key"].to_pylist()
    found = {}
    for key, answer in corpus.store.get_many(keys):
        assert not isinstance(answer, Exception)
        found[Path(key).stem] = answer.data
    return found
