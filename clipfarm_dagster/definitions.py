"""The definitions of a code location that is ClipFarm's own; a project with more in it calls
`build_definitions`."""

import dagster as dg

from clipfarm_dagster.orchestration.assembling import build_definitions
from clipfarm_dagster.orchestration.executor import locking_in_process_executor

__all__ = ["build_definitions", "defs"]

defs = dg.Definitions.merge(
    build_definitions(),
    dg.Definitions(
        # a run is one step with worker processes of its own; a second process for the step only costs time
        executor=locking_in_process_executor,
        # nothing is handed on by it; Dagster's own default writes to a folder that a run may name
        resources={"io_manager": dg.mem_io_manager},
    ),
)
