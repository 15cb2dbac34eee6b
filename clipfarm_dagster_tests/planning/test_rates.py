"""How fast nodes were: what runs add, and what a plan makes of it."""

from __future__ import annotations

import pytest

from clipfarm_dagster.engine.node_kind import NodeWork, node_kind
from clipfarm_dagster.planning.estimate import SETTLED_PER_SECOND, estimate_fleet
from clipfarm_dagster.planning.rates import REMEMBERED_ITEMS, Rate, read_rates, record_work
from clipfarm_dagster.stages import Stage
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster.store.keys import Keys

KEYS = Keys()


def rate(kind: str, per_second: float, items: float = 100) -> Rate:
    return Rate(kind, items, items / per_second, "2026-01-01T00:00:00.000000Z")


def test_runs_add_up_and_are_compared_with_what_was_known_before(store: ObjectStore) -> None:
    def ran(*work: NodeWork) -> float | None:
        return record_work(store, KEYS, Stage.TEXT, "c1", work)

    assert ran(NodeWork("small", 100, 50), NodeWork("small", 100, 50)) is None
    assert ran(NodeWork("small", 100, 100), NodeWork("large", 900, 100)) is None, "one kind is new"
    # by then a small node had computed 300 in 200 s, a large one 900 in 100 s
    assert ran(NodeWork("small", 70, 1), NodeWork("large", 980, 1)) == pytest.approx(1_050 / (1.5 + 9))
    assert ran(NodeWork("", 5, 1)) is None, "a node of no known kind"
    assert ran(NodeWork("idle", 0, 1)) is None, "one that was never needed"

    known = read_rates(store, KEYS, Stage.TEXT, "c1")
    assert [(one.kind, one.items, one.seconds) for one in known] == [
        ("large", 1_880, 101),
        ("small", 370, 201),
    ]
    assert read_rates(store, KEYS, Stage.TEXT, "c2") == []
    assert read_rates(store, KEYS, Stage.VIDEO, "c1") == []


def test_what_was_long_ago_counts_less() -> None:
    long_ago = rate("small", 1.0, items=50 * REMEMBERED_ITEMS)

    now = long_ago.after(REMEMBERED_ITEMS, REMEMBERED_ITEMS / 3, "later")

    assert now.per_second == pytest.approx(2 / (1 + 1 / 3))


def test_an_estimate_is_by_kind_and_bounded_by_the_process_that_records() -> None:
    recorded = {
        "video": [rate("gpu", 100.0), rate("cpu", 2.0)],
        "text": [rate("cpu", 50.0)],
        "audio": [],
    }

    gpu, cpu = estimate_fleet({"video": 14_400, "text": 72_000, "audio": 0}, recorded, nodes=2)

    assert (cpu.kind, cpu.stages["video"].hours, cpu.stages["text"].hours) == ("cpu", 1.0, 0.2)
    assert cpu.hours == pytest.approx(1.2)
    assert gpu.stages["text"].hours is None
    assert gpu.hours is None
    [many, _] = estimate_fleet({"video": 3_600_000}, recorded, nodes=1_000)
    assert many.hours == pytest.approx(3_600_000 / SETTLED_PER_SECOND / 3600)
    assert estimate_fleet({"audio": 5}, recorded, nodes=1) == []


def test_a_kind_is_what_people_call_a_node() -> None:
    cpu = {"processor": "AMD EPYC 9654, AVX512", "device": "cpu"}
    gpu = {**cpu, "device": "NVIDIA H100 80GB HBM3, CUDA 12.9, cuDNN 91002"}

    assert node_kind(cpu, 2, 4) == "8 cores of AMD EPYC 9654, AVX512"
    assert node_kind(gpu, 12, 8) == "8 × NVIDIA H100 80GB HBM3, 96 cores of AMD EPYC 9654, AVX512"
