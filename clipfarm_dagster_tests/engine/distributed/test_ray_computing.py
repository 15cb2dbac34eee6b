"""Items computed on a real cluster: the same vectors as here, and one outcome each, whatever breaks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clipfarm_dagster.canary.baseline import Baseline
from clipfarm_dagster.corpus.checked_encoder import checked_encoder, node_model
from clipfarm_dagster.engine.outcomes import OutcomeKind
from clipfarm_dagster.errors import ClusterError, DriftError, ModelUnavailableError
from clipfarm_dagster.settings import load_settings
from clipfarm_dagster.store import ObjectStore
from clipfarm_dagster_tests.engine.distributed.conftest import DistributedBench
from clipfarm_dagster_tests.support.bench import KEYS, bench, transcripts
from clipfarm_dagster_tests.support.nodes import HANGS_THE_MODEL, KILLS_THE_MODEL


def transcript(text: str) -> bytes:
    return json.dumps({"transcript": text}).encode()


def test_vectors_are_those_of_this_machine_bit_for_bit(text: DistributedBench, tmp_path: Path) -> None:
    raw = transcripts(60)
    with bench(text.encoder, ObjectStore.open(str(tmp_path / "here")), tmp_path / "here") as local:
        local.put(raw)
        local.run(list(raw))
        here = {video_id: local.vector(video_id).tobytes() for video_id in raw}
    text.put(raw)

    progress = text.run_on_nodes([*raw, "not-there"])

    assert progress.outcomes == {"success": 60, "missing_raw_object": 1}
    assert progress.model_calls == 60
    assert {video_id: text.vector(video_id).tobytes() for video_id in raw} == here
    assert text.kinds() == dict.fromkeys(raw, OutcomeKind.EMBEDDED) | {"not-there": OutcomeKind.MISSING}
    assert sum(progress.nodes.values()) == 61
    assert {"fetch", "prepare", "infer"} <= progress.seconds.keys()


def test_what_is_up_to_date_needs_no_cluster(text: DistributedBench) -> None:
    raw = transcripts(3)
    text.put(raw)
    text.run(list(raw))

    progress = text.run_on_nodes(list(raw), address="127.0.0.1:1")

    assert (progress.outcomes, progress.model_calls) == ({"success": 3}, 0)


def test_what_is_forced_is_computed_again_on_nodes_and_shows_its_preview(text: DistributedBench) -> None:
    raw = transcripts(3)
    text.put(raw)
    text.run(list(raw))
    text.recorded, text.options = [], replace(text.options, force=True, previews=True)

    progress = text.run_on_nodes(list(raw))

    assert progress.model_calls == 3
    assert text.kinds() == dict.fromkeys(raw, OutcomeKind.EMBEDDED)
    assert all("Transcript" in (outcome.preview or "") for outcome in text.recorded)


def test_what_ends_the_models_process_is_found_and_costs_itself_alone(text: DistributedBench) -> None:
    raw = transcripts(30) | {"poison": transcript(KILLS_THE_MODEL)}
    text.put(raw)

    progress = text.run_on_nodes(list(raw))

    assert progress.outcomes == {"success": 30, "fail": 1}
    assert "the process that computed it alone" in (text.row("poison").error or "")
    assert sum("its process ended" in line for line in text.lines) == 3
    assert progress.widths["infer"] <= 2, "those that ended do not count"


@pytest.mark.slow
def test_what_hangs_the_model_is_ended_by_silence(text: DistributedBench) -> None:
    raw = transcripts(12) | {"hangs": transcript(HANGS_THE_MODEL)}
    text.put(raw)

    progress = text.run_on_nodes(list(raw), silence_seconds=10)

    assert progress.outcomes == {"success": 12, "fail": 1}
    assert "no result for 10 s" in (text.row("hangs").error or "")


def test_a_node_with_another_model_writes_nothing_and_is_named(text: DistributedBench) -> None:
    from clipfarm_dagster_tests.support.nodes import node_loader

    text.put(transcripts(2))
    other = node_loader(text.stage, text.model, text.home, dtype="bfloat16")

    with pytest.raises(ModelUnavailableError, match=r"^node \S+ .*differ in dtype"):
        text.run_on_nodes(["clip-000", "clip-001"], load=other)

    assert text.recorded == []
    assert text.ledger.counts() == {}


def test_nodes_on_which_the_canary_moved_write_nothing_and_are_named(
    text: DistributedBench, tmp_path: Path
) -> None:
    text.put(transcripts(2))
    model = {"model": str(text.model)}
    settings = load_settings(home=text.home, device="cpu", text=model, ray_node_home=str(tmp_path / "node"))
    checked_encoder(text.stage, settings, text.store)
    key = KEYS.canary_baseline(text.stage, text.encoder.contract.id)
    stored = Baseline.from_npz(text.store.get(key).data)
    moved = replace(stored, trace=replace(stored.trace, vector=-stored.trace.vector))
    text.store.put(key, moved.to_npz())

    with pytest.raises(DriftError, match=r"^node \S+ .*the text canary moved"):
        text.run_on_nodes(["clip-000", "clip-001"], load=node_model(text.stage, settings, text.store.url))

    assert text.recorded == []
    assert text.ledger.counts() == {}


@pytest.mark.parametrize(("address", "problem"), [("", "RAY_ADDRESS"), ("127.0.0.1:1", "cannot be used")])
def test_a_cluster_that_is_not_there_is_named(text: DistributedBench, address: str, problem: str) -> None:
    text.put(transcripts(1))

    with pytest.raises(ClusterError, match=problem):
        text.run_on_nodes(["clip-000"], address=address)

    assert text.ledger.counts() == {}
