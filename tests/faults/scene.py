"""One fault while it is there: what is asked, and how it is seen to fail and to work."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from .stage import Answer, Application, Stage


@dataclass
class Scene:
    stage: Stage
    path: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    app: Application | None = None
    control: Application | None = None
    looks: int = 1
    """How often it is looked whether it works: more where a fault strikes some requests only."""
    patience_s: float = 15
    """How long a repair may take."""
    asks: bool = True
    """Whether one request is made that meets the fault; else others do that already, or nobody."""
    lasting: bool = True
    """Whether the fault, if it is not repaired, still meets a request at the time of the verdict."""
    look: Callable[[Application], bool] | None = None
    """Whether it works; instead of the request."""
    curable: bool = True
    """Whether the page works again once the fault is ended."""
    timeout_s: float = 25
    saw: list[str] = field(default_factory=list[str])
    """What it answered when it was looked last."""
    grace_s: float = 0
    """What the other processes, and callers that waited and now repeat their own requests, get before it is looked."""

    @property
    def patient(self) -> Application:
        return self.app or self.stage.patient

    @property
    def other(self) -> Application:
        return self.control or self.stage.control

    def ask(self, who: Application) -> Answer:
        return self.stage.ask(who, self.path, method=self.method, headers=self.headers, timeout=self.timeout_s)

    def works(self, who: Application) -> bool:
        """Each look without a failure, and one at least that is answered."""
        if self.look is not None:
            return all(self.look(who) for _ in range(self.looks))
        answers: list[Answer] = []
        self.saw.clear()
        # Others compete for what a throttle lets through.
        while len(answers) < self.looks or (all(one.refused for one in answers) and len(answers) < 12 * self.looks):
            answers.append(self.ask(who))
            self.saw.append(f"{answers[-1].status} {answers[-1].error.get('type', '')}".strip())
            if self.looks > 1:
                time.sleep(0.15)
        return not any(one.failed for one in answers) and any(one.status == 200 for one in answers)


@contextlib.contextmanager
def traffic(scene: Scene, clients: int, pause_s: float, *, paths: tuple[str, ...] = ()) -> Iterator[None]:
    """Clients of both instances that go on until the block ends."""
    over = threading.Event()

    def client(who: Application) -> None:
        while not over.is_set():
            for path in paths or (scene.path,):
                answer = scene.stage.ask(who, path, method=scene.method, headers=scene.headers)
                # As Retry-After asks.
                over.wait(1.0 if answer.status == 429 else 0)
            over.wait(pause_s)

    threads = [
        threading.Thread(target=client, args=(who,), daemon=True)
        for who in (scene.patient, scene.other)
        for _ in range(clients)
    ]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        over.set()
        for one in threads:
            one.join(30)
