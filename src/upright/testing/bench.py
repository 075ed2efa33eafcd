"""A recovery's surroundings in memory: the application is played by functions that answer its commands."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal
from uuid import uuid4

from upright.config import Settings
from upright.domain.directive import Acknowledgement, AlertSettings, Command, CommandResult, SyncRequest
from upright.domain.event import Event
from upright.domain.runbook import Runbook
from upright.domain.verdict import Evidence, Verdict
from upright.services.book import Book
from upright.services.dependencies import Dependencies
from upright.services.ports import Prober
from upright.services.recovery import Recovery
from upright.services.routing import Router
from upright.testing.events import ALL_COMMANDS
from upright.testing.ports import InMemoryStore, RecordingMailer, ScriptedDispatch

Answerer = Callable[[Command], Awaitable[CommandResult | None]]
SETTINGS = AlertSettings(alert_recipients=["ops@example.com"], escalation_recipients=["boss@example.com"])


def answering(
    evidence: Evidence | None,
    status: Literal["applied", "refused", "unsupported", "failed"] = "applied",
) -> Answerer:
    """An application that carries every command out, and sees this afterwards."""

    async def answer(command: Command) -> CommandResult:
        acknowledgements = [
            Acknowledgement(directive_id=one.id, version=one.version, status=status, after=one.values)
            for one in command.directives
        ]
        return CommandResult(command_id=command.id, status="done", acknowledgements=acknowledgements, evidence=evidence)

    return answer


class Bench:
    def __init__(self, book: Book, waiter: Answerer | None = None, agent: Answerer | None = None) -> None:
        self.store = InMemoryStore()
        self.dispatch = ScriptedDispatch(waiter, agent)
        self.mailer = RecordingMailer()
        self.prober: Prober | None = None
        self._book = book

    async def connect(self, *instances: str, commands: list[str] | None = None) -> None:
        """Processes of the service."""
        for one in instances:
            kinds = commands or [*ALL_COMMANDS, "check", "traffic"]
            await self._sync(one, {"commands": kinds}, [])

    async def acknowledge(self, instance: str, *told: Acknowledgement) -> None:
        await self._sync(instance, {"commands": ALL_COMMANDS}, list(told))

    async def _sync(self, instance: str, capabilities: dict[str, Any], told: list[Acknowledgement]) -> None:
        request = SyncRequest(
            service="django", instance=instance, acknowledgements=told, capabilities=capabilities, settings=SETTINGS
        )
        await self.store.sync("default", request)

    async def open(self, event: Event, **rules: Any) -> Recovery:
        """The recovery of an error that has just come in; `rules` are changes to its runbook."""
        router = Router(self._book)
        routing = router.route(event)
        acceptance = await self.store.accept(
            "default",
            str(uuid4()),
            event,
            fingerprint=str(uuid4()),
            runbook=routing.runbook,
            severity=routing.severity,
            cooldown_s=60,
        )
        assert acceptance.recovery is not None  # noqa: S101 (an accepted event has one)
        dependencies = Dependencies(
            self.store, self.dispatch, self._book, Settings(), "this", self.mailer, prober=self.prober
        )
        recovery = await Recovery.begin(
            dependencies, str(event.error_id), runbook=routing.runbook, flow_run_id=uuid4(), attempt=1
        )
        runbook = Runbook.model_validate({**recovery.runbook.model_dump(), **rules})
        return Recovery(dependencies, recovery.record, event, runbook)

    async def desired(self) -> dict[str, Any]:
        """What is in force, by strategy."""
        return {one.strategy: one.values for one in (await self.store.desired("default", "django"))[1]}


async def carry_out(recovery: Recovery) -> None:
    """What the flow does, without Prefect."""
    ranking = await recovery.score()
    for choice in ranking.tried:
        acted = await recovery.act(choice)
        if acted.settled is None and (await recovery.verify(acted)).verdict is Verdict.RECOVERED:
            break
    await recovery.conclude()
