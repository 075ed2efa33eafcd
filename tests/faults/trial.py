"""One fault from beginning to end: made, met without and with recovery, judged, ended, and looked after."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .catalogue import Fault
from .making import MAKING
from .scene import Scene
from .stage import Stage, eventually

OPEN = ("queued", "running")


@dataclass
class Outcome:
    fault: Fault
    verdict: str = "none"
    """What the service said in the end; `none`: it heard of nothing."""
    strategy: str | None = None
    """What it says repaired it."""
    repair_ms: float | None = None
    reason: str = ""
    wrong: bool = False
    """It said recovered, and the fault was there."""
    left: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])
    """Where the trial itself did not go as it should: nothing is proven then."""
    took_s: float = 0.0

    @property
    def repaired(self) -> bool:
        return self.verdict == "recovered" and not self.wrong and not self.problems

    @property
    def as_expected(self) -> bool:
        expected = self.verdict in self.fault.verdict and not self.wrong and not self.left and not self.problems
        return expected and (not self.fault.repairable or self.strategy == self.fault.strategy)

    def row(self) -> dict[str, Any]:
        return {
            "name": self.fault.name,
            "type": self.fault.type,
            "repairable": self.fault.repairable,
            "expected": {"verdict": " or ".join(self.fault.verdict), "strategy": self.fault.strategy},
            "actual": {"verdict": self.verdict, "strategy": self.strategy},
            "repaired": self.repaired,
            "repair_ms": None if self.repair_ms is None else round(self.repair_ms),
            "wrong_verdict": self.wrong,
            "side_effects_left": self.left,
            "problems": self.problems,
            "reason": self.reason,
            "took_s": round(self.took_s, 1),
        }


def run(stage: Stage, fault: Fault) -> Outcome:
    began, outcome = time.monotonic(), Outcome(fault)
    stage.peers.well()
    since, scene = stage.now(), None
    try:
        with contextlib.contextmanager(MAKING[fault.name.replace("_", "-")])(stage) as scene:
            if scene.app is not None:
                # What its health address said while it started is another matter.
                since = stage.now()
            _meet(stage, scene, outcome, since)
    except Exception as error:  # the others are still worth trying, and this one counts as unproven
        outcome.problems.append(f"{type(error).__name__}: {error}"[:300])
    stage.peers.well()
    service = scene.patient.service if scene is not None else "patient"
    stage.settle(service, since)
    outcome.left = stage.leftovers()
    if fault.strategy == "queue_priority":
        consumed = eventually(lambda: stage.consumed("patient") == {"patient-work"}, 30)
        outcome.left += [] if consumed else [f"the workers consume {sorted(stage.consumed('patient'))}"]
    if scene is not None and scene.app is None and scene.curable:
        fine = scene
        if not eventually(lambda: fine.ask(stage.patient).status == 200, 20):
            outcome.left.append(f"{scene.path} does not work after the fault was ended")
        asked_itself = eventually(
            lambda: all("X-Upright-Fallback" not in fine.ask(stage.patient).headers for _ in range(8)), 10
        )
        outcome.left += [] if asked_itself else [f"{scene.path} is still answered by a fallback"]
    outcome.took_s = time.monotonic() - began
    return outcome


def _meet(stage: Stage, scene: Scene, outcome: Outcome, since: Any) -> None:
    if scene.works(scene.other):
        outcome.problems.append("with recovery off it works at the start")
    began = time.monotonic()
    answered_ms = None
    if scene.asks:
        for _ in range(20):
            began = time.monotonic()
            answer = scene.ask(scene.patient)
            if answer.error or answer.status != 200:
                if answer.recovery.get("success"):
                    answered_ms = (time.monotonic() - began) * 1000
                break
            if "X-Upright-Recovered" in answer.headers:
                answered_ms = (time.monotonic() - began) * 1000
                break
    recovery = _judged(stage, scene, since)
    ended_ms = (time.monotonic() - began) * 1000
    if scene.lasting and not _fails(scene):
        outcome.problems.append("with recovery off it works at the time of the verdict")
    if recovery is None:
        if answered_ms is not None:
            outcome.wrong, outcome.reason = True, "the answer claims a repair that the service knows nothing of"
        return
    actions = stage.actions(recovery)
    outcome.verdict = recovery["status"]
    if recovery["status"] == "recovered":
        outcome.strategy = next((one["strategy"] for one in actions if one["verdict"] == "recovered"), None)
        # To its own caller by the answer, to others by the service.
        incident_ms = (recovery["finished_at"] - recovery["created_at"]).total_seconds() * 1000
        outcome.repair_ms = answered_ms or (incident_ms if not scene.asks else ended_ms)
        time.sleep(scene.grace_s)
        if not scene.works(scene.patient):
            outcome.wrong = True
            outcome.problems.append(f"it answered {scene.saw}")
    elif answered_ms is not None:
        outcome.wrong = True
    outcome.reason = "; ".join(f"{one['strategy']}: {one['verdict']}, {one['reason']}" for one in actions)[:1500]


def _fails(scene: Scene) -> bool:
    """Of faults that strike some requests only, one look may miss them."""
    return any(not scene.works(scene.other) for _ in range(3))


def _judged(stage: Stage, scene: Scene, since: Any) -> dict[str, Any] | None:
    """The recovery that tells: the first that has recovered; else, when no more is to come, the last."""
    service = scene.patient.service

    def told() -> dict[str, Any] | None:
        found = stage.recoveries(service, since)
        recovered = [one for one in found if one["status"] == "recovered"]
        if recovered:
            return recovered[0]
        if scene.asks and found and not [one for one in found if one["status"] in OPEN]:
            return found[-1]
        return None

    judged = eventually(told, scene.patience_s)
    if judged is not None:
        return judged
    found = [one for one in stage.recoveries(service, since) if one["status"] not in OPEN]
    return found[-1] if found else None


def trials(stage: Stage, faults: list[Fault]) -> Iterator[Outcome]:
    for one in faults:
        yield run(stage, one)
