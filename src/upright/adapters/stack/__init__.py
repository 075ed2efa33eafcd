"""Everything on one machine: engines, service and sample shop, started in order, watched, and stopped together."""

from upright.adapters.stack.layout import Layout, Ports, build, engines
from upright.adapters.stack.parts import ChildPart, EnginePart, Part, TaskPart
from upright.adapters.stack.supervisor import Progress, Stack, State

__all__ = [
    "ChildPart",
    "EnginePart",
    "Layout",
    "Part",
    "Ports",
    "Progress",
    "Stack",
    "State",
    "TaskPart",
    "build",
    "engines",
]
