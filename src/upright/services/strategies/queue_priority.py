"""queue_priority: the task that a caller waited for in vain goes past its queue's backlog."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from upright.domain.event import Event
from upright.services.strategies.base import (
    Fleet,
    Parameters,
    Plan,
    Strategy,
    announced_targets,
    as_mapping,
    as_number,
    reading,
)

Priority = Literal["low", "normal", "high"]
BACKLOG = 10
"""Tasks that must be waiting before a queue counts as congested."""


class QueuePriorityParameters(Parameters):
    current_priority: Priority = "normal"
    new_priority: Priority = "high"
    boost_factor: Annotated[float, Field(ge=1, le=10)] = 2


class QueuePriority(Strategy):
    name = "queue_priority"
    success_rate = 0.70
    cost_s = 4
    parameters = QueuePriorityParameters

    def precondition(self, event: Event, fleet: Fleet, parameters: QueuePriorityParameters) -> str | None:
        task, queue = _awaited(event)
        if not queue:
            return "the error does not come from waiting for a task"
        targets = announced_targets(fleet, self.name)
        if targets is not None and f"celery:{queue}" not in targets:
            return f"no process of the service can boost the queue {queue!r}"
        waiting = as_number(reading(event, fleet, "queues", queue).get("waiting"))
        if waiting is None:
            return f"the length of the queue {queue!r} is not known"
        if waiting < BACKLOG:
            return f"{waiting:g} tasks wait in {queue!r}: that is no backlog, and {task} is slow for another reason"
        return None

    def plan(self, event: Event, fleet: Fleet, parameters: QueuePriorityParameters) -> Plan:
        task, queue = _awaited(event)
        waiting = as_number(reading(event, fleet, "queues", queue).get("waiting")) or 0
        return Plan(
            command="apply",
            target=f"celery:{queue}",
            values={"queue": f"{queue}.boosted", "tasks": task, "boost_factor": parameters.boost_factor},
            before={"waiting": int(waiting)},
            why=f"{task} past the {waiting:g} tasks that wait in {queue!r}, {parameters.boost_factor:g} turns for one",
        )


def _awaited(event: Event) -> tuple[str, str]:
    """Name and queue of the task whose result did not come."""
    task = as_mapping(event.measurements.get("task"))
    return str(task.get("name") or ""), str(task.get("queue") or "")
