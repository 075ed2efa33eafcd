"""The parts of a stack: what each needs first, how it starts, how it shows that it is up."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Protocol

from upright.adapters.engines.child import Child, describe_exit


class Part(Protocol):
    name: str
    after: tuple[str, ...]
    """Names of parts that must be up before this one is launched."""
    timeout_s: float

    @property
    def child(self) -> Child | None: ...

    @property
    def lasting(self) -> bool:
        """Whether its process must go on after it is up."""
        ...

    def launch(self) -> None:
        """Raises EngineFailed."""
        ...

    def ready(self) -> bool:
        """Never blocks for long. Raises EngineFailed where it can't become ready any more."""
        ...

    def stop(self) -> None: ...


class Engine(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def child(self) -> Child | None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


class EnginePart:
    """An engine that is up when its `start` returns."""

    lasting = True

    def __init__(self, engine: Engine, *, after: tuple[str, ...] = (), then: Callable[[], None] | None = None) -> None:
        """`then` is done once it is up: its databases, say."""
        self.name = engine.name
        self.after = after
        self.timeout_s = 60.0
        self._engine = engine
        self._then = then

    @property
    def child(self) -> Child | None:
        return self._engine.child

    def launch(self) -> None:
        self._engine.start()
        if self._then is not None:
            self._then()

    def ready(self) -> bool:
        return True

    def stop(self) -> None:
        self._engine.stop()


class ChildPart:
    """A process that goes on running, up when `answers` says so."""

    lasting = True

    def __init__(
        self,
        name: str,
        spawn: Callable[[], Child],
        answers: Callable[[], bool],
        *,
        after: tuple[str, ...] = (),
        timeout_s: float = 60,
    ) -> None:
        self.name = name
        self.after = after
        self.timeout_s = timeout_s
        self.child: Child | None = None
        self._spawn = spawn
        self._answers = answers

    def launch(self) -> None:
        self.child = self._spawn()

    def ready(self) -> bool:
        if self.child is not None and not self.child.running:
            raise self.child.failure(f"ended at start with {describe_exit(self.child.process.returncode)}")
        return self._answers()

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()


class TaskPart:
    """A process that does one thing and ends: up when it has ended well."""

    lasting = False

    def __init__(
        self, name: str, spawn: Callable[[], Child], *, after: tuple[str, ...] = (), timeout_s: float = 120
    ) -> None:
        self.name = name
        self.after = after
        self.timeout_s = timeout_s
        self.child: Child | None = None
        self._spawn = spawn

    def launch(self) -> None:
        self.child = self._spawn()

    def ready(self) -> bool:
        if self.child is None or self.child.running:
            return False
        if self.child.process.returncode:
            raise self.child.failure(f"failed with {describe_exit(self.child.process.returncode)}")
        return True

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()


def answers_ok(url: str) -> Callable[[], bool]:
    """Whether a GET of that address answers 200."""

    def ask() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - an address of ours
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    return ask
