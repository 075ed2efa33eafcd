"""Starts parts as soon as what they need is up, watches them, stops them in reverse."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TypeVar

from upright.adapters.engines.child import describe_exit
from upright.adapters.stack.parts import Part
from upright.errors import EngineFailed

_POLL_S = 0.05
Result = TypeVar("Result")


class State(StrEnum):
    WAITING = "waiting"
    STARTING = "starting"
    UP = "up"
    FAILED = "failed"
    STOPPED = "stopped"


Progress = Callable[[Part, State, float], None]
"""Told of each change of a part, with the seconds since its launch."""


class Stack:
    """Call it from the main thread: children end with the thread that launched them."""

    def __init__(self, parts: Sequence[Part], progress: Progress | None = None) -> None:
        self.parts = list(parts)
        self.states = {part.name: State.WAITING for part in parts}
        self._launched: dict[str, float] = {}
        self._progress = progress or _silent

    def start(self) -> None:
        """Returns when every part is up. Raises EngineFailed, everything stopped, when one can't."""
        try:
            while any(state in (State.WAITING, State.STARTING) for state in self.states.values()):
                self._step()
                self.require_running()
                time.sleep(_POLL_S)
        except BaseException:
            self.stop()
            raise

    def watch(self, until: Callable[[], bool]) -> None:
        """Blocks until `until` says so. Raises EngineFailed when a part ends by itself."""
        while not until():
            self.require_running()
            time.sleep(0.2)

    def stop(self) -> None:
        """Stops what was launched, last first. May be called twice."""
        for part in reversed(self.parts):
            if self.states[part.name] in (State.WAITING, State.STOPPED):
                continue
            began = time.monotonic()
            part.stop()
            self.states[part.name] = State.STOPPED
            self._progress(part, State.STOPPED, time.monotonic() - began)

    def _step(self) -> None:
        for part in self.parts:
            state = self.states[part.name]
            if state is State.WAITING and all(self.states.get(name) in (None, State.UP) for name in part.after):
                self._launched[part.name] = time.monotonic()
                self._become(part, State.STARTING)
                self._guarded(part, part.launch)
            elif state is State.STARTING and self._guarded(part, part.ready):
                self._become(part, State.UP)
            elif state is State.STARTING and self._age(part) > part.timeout_s:
                self._become(part, State.FAILED)
                late = f"was not up within {part.timeout_s:g} s"
                raise part.child.failure(late) if part.child else EngineFailed(f"{part.name}: {late}")

    def _guarded(self, part: Part, act: Callable[[], Result]) -> Result:
        try:
            return act()
        except EngineFailed:
            self._become(part, State.FAILED)
            raise

    def require_running(self) -> None:
        """Raises EngineFailed when a part that was up has ended by itself."""
        for part in self.parts:
            if self.states[part.name] is State.UP and part.lasting and part.child and not part.child.running:
                self._become(part, State.FAILED)
                raise part.child.failure(f"ended with {describe_exit(part.child.process.returncode)}")

    def _become(self, part: Part, state: State) -> None:
        self.states[part.name] = state
        self._progress(part, state, self._age(part))

    def _age(self, part: Part) -> float:
        return time.monotonic() - self._launched[part.name]


def _silent(part: Part, state: State, seconds: float) -> None:
    pass
