"""The executor of all jobs: Dagster's in-process one, in a process that holds the run's lock."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import dagster as dg

from clipfarm_dagster.orchestration.runs.locks import lock_run

if TYPE_CHECKING:
    from dagster._core.events import DagsterEvent
    from dagster._core.execution.context.system import PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan
    from dagster._core.execution.retries import RetryMode
    from dagster._core.execution.step_dependency_config import StepDependencyConfig


@dg.executor(
    name=dg.in_process_executor.name, config_schema=cast("Any", dg.in_process_executor.config_schema)
)
def locking_in_process_executor(context: dg.InitExecutorContext) -> dg.Executor:
    """All steps in the run's process, whose life a lock shows; configured as Dagster's own."""
    create = dg.in_process_executor.executor_creation_fn
    assert create is not None
    return _LockingExecutor(create(context))


class _LockingExecutor(dg.Executor):
    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> "RetryMode":
        return self._executor.retries

    @property
    def step_dependency_config(self) -> "StepDependencyConfig":
        return self._executor.step_dependency_config

    def execute(
        self, plan_context: "PlanOrchestrationContext", execution_plan: "ExecutionPlan"
    ) -> Iterator["DagsterEvent"]:
        # before Dagster tells the process's number, by which runs without a lock are judged; and held to the
        # process's end, since the run's end is recorded after this
        lock_run(plan_context.instance, plan_context.run_id)
        yield from self._executor.execute(plan_context, execution_plan)
