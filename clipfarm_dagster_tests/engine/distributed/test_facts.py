"""What a node tells of itself."""

from __future__ import annotations

from pathlib import Path

from clipfarm_dagster.engine.distributed.facts import NodeFacts, free_memory_bytes


def test_versions_and_memory_are_those_of_this_process() -> None:
    facts = NodeFacts.of_this_process()

    assert facts.versions.keys() >= {"python", "clipfarm-dagster", "torch", "transformers"}
    assert facts.free_memory_bytes is None or facts.free_memory_bytes > 0


def test_free_memory_is_what_machine_and_container_leave(tmp_path: Path) -> None:
    memory, container = tmp_path / "meminfo", tmp_path / "cgroup"
    assert free_memory_bytes(memory, container) is None
    memory.write_text("MemTotal:  9000 kB\nMemAvailable:  8000 kB\n")
    assert free_memory_bytes(memory, container) == 8_192_000

    container.mkdir()
    (container / "memory.current").write_text("5000000\n")
    (container / "memory.stat").write_text("anon 4000000\ninactive_file 1000000\n")
    (container / "memory.max").write_text("max\n")
    assert free_memory_bytes(memory, container) == 8_192_000
    (container / "memory.max").write_text("6000000\n")
    assert free_memory_bytes(memory, container) == 2_000_000
