"""A line for each part of the stack: live on a terminal, one at a time elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from upright.adapters.stack import Part, State

_MARKS = {State.UP: ("✓", "green"), State.FAILED: ("✗", "red"), State.STOPPED: ("■", "dim")}


class Board:
    """Use as a context manager; call `changed` as the stack's progress."""

    def __init__(self, console: Console, names: list[str], details: dict[str, str] | None = None) -> None:
        self.console = console
        self.details = details or {}
        self._states = dict.fromkeys(names, State.WAITING)
        self._seconds: dict[str, float] = {}
        self._since: dict[str, float] = {}
        self._spinner = Spinner("dots")
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=10, transient=False)

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def changed(self, part: Part, state: State, seconds: float) -> None:
        self._states[part.name] = state
        self._seconds[part.name] = seconds
        self._since[part.name] = time.monotonic()
        if not self.console.is_terminal and state in (State.UP, State.FAILED):
            self.console.print(self._line(part.name, state))

    def _line(self, name: str, state: State) -> Text:
        mark, style = _MARKS[state]
        text = Text.assemble((f"{mark} ", style), f"{name:<16} ", (f"{self._seconds.get(name, 0):5.1f} s", "dim"))
        if state is State.UP and self.details.get(name):
            text.append(f"  {self.details[name]}", style="cyan")
        return text

    def _render(self) -> RenderableType:
        lines: list[RenderableType] = []
        for name, state in self._states.items():
            if state is State.STARTING:
                row = Table.grid(padding=(0, 0))
                elapsed = time.monotonic() - self._since[name]
                row.add_row(self._spinner, f" {name:<16} ", Text(f"{elapsed:5.1f} s", style="dim"))
                lines.append(row)
            elif state is State.WAITING:
                lines.append(Text(f"· {name}", style="dim"))
            else:
                lines.append(self._line(name, state))
        return Group(*lines)
