"""An application and a service to test with: messages as an application signs them, the intake on a real store.

For tests; needs httpx. The launcher is played by the test, and a router answers every error alike.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import httpx
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook

from upright.adapters.bus import Bus
from upright.adapters.dispatch import CommandDispatch
from upright.adapters.intake import create_app
from upright.adapters.slack import SlackWebhooks
from upright.adapters.store import Database, PostgresStore
from upright.config import Settings
from upright.domain.event import ErrorDetail, Event, RequestDetail, Waiter
from upright.domain.severity import Severity
from upright.services.ports import Acceptance, RecoveryRecord

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()


@dataclass
class Replica:
    """One process of the service, as far as the store goes."""

    bus: Bus
    database: Database
    store: PostgresStore
    dispatch: CommandDispatch


def an_event(**changes: Any) -> Event:
    values: dict[str, Any] = {
        "error_id": uuid4(),
        "service": "shop",
        "occurred_at": datetime.now(UTC),
        "error": ErrorDetail(
            type="OperationalError",
            message="canceling statement due to statement timeout",
            classes=[["django.db.utils.OperationalError", "django.db.utils.DatabaseError"]],
        ),
        "request": RequestDetail(method="GET", route="report/", path="/report/", view="report", replayable=True),
    }
    return Event(**{**values, **changes})


def waiting(**changes: Any) -> Event:
    return an_event(waiter=Waiter(budget_ms=5000, can=["apply", "replay", "retry", "probe"]), **changes)


async def accept(store: PostgresStore, event: Event | None = None, **changes: Any) -> Acceptance:
    options: dict[str, Any] = {
        "fingerprint": "f" * 32,
        "runbook": "database-error",
        "severity": Severity.CRITICAL,
        "cooldown_s": 60.0,
        "queued": True,
    }
    tenant = changes.pop("tenant", "default")
    delivery_id = changes.pop("delivery_id", None) or str(uuid4())
    return await store.accept(tenant, delivery_id, event or an_event(), **{**options, **changes})


async def a_running_recovery(store: PostgresStore, event: Event | None = None, **changes: Any) -> RecoveryRecord:
    accepted = await accept(store, event, **changes)
    if accepted.role != "opened" or accepted.recovery is None:
        raise AssertionError(f"{accepted.role} rather than opened")
    return await store.bind(accepted.recovery.id, flow_run_id=uuid4(), runner="runner-1", lease_s=30)


async def eventually(condition: Callable[[], Awaitable[Any]], timeout_s: float = 10) -> Any:
    """Wait until it is true; its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := await condition()):
        assert time.monotonic() < deadline, "it never came true"  # noqa: S101
        await asyncio.sleep(0.01)
    return value


@dataclass(frozen=True)
class FixedRouting:
    runbook: str = "database-error"
    severity: Severity = Severity.CRITICAL
    cooldown_s: float = 60.0
    relapse_window_s: float = 600.0


class FixedRouter:
    def route(self, event: Event) -> FixedRouting:
        return FixedRouting()


@dataclass
class SubmittedRecoveries:
    """A launcher that keeps what it is given, for the test to carry out."""

    submitted: list[RecoveryRecord] = field(default_factory=list[RecoveryRecord])

    def submit(self, recovery: RecoveryRecord) -> None:
        self.submitted.append(recovery)

    async def next(self) -> RecoveryRecord:
        async def any_submitted() -> bool:
            return bool(self.submitted)

        await eventually(any_submitted)
        return self.submitted.pop(0)


@dataclass
class Sender:
    """An application: signs what it sends, and verifies what it gets."""

    http: httpx.AsyncClient
    secret: str = SECRET
    tenant: str | None = None

    async def post(
        self,
        path: str,
        body: Any,
        *,
        delivery_id: str | None = None,
        verify: bool = True,
        headers: dict[str, str] | None = None,
        content: Any = None,
        **parameters: Any,
    ) -> httpx.Response:
        raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else _json(body)).encode()
        signed = self.sign(raw, delivery_id or str(uuid4()))
        if self.tenant is not None:
            signed["upright-tenant"] = self.tenant
        response = await self.http.post(
            path, content=content or raw, headers={**signed, **(headers or {})}, params=parameters
        )
        if verify:
            assert response.headers["webhook-id"] == signed["webhook-id"]  # noqa: S101
            Webhook(self.secret).verify(response.content, dict(response.headers))
        return response

    def sign(self, raw: bytes, delivery_id: str, when: datetime | None = None) -> dict[str, str]:
        now = when or datetime.now(UTC)
        return {
            "content-type": "application/json",
            "webhook-id": delivery_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(self.secret).sign(delivery_id, now, raw.decode("utf-8", "surrogateescape")),
        }


def _json(body: Any) -> str:
    return body.model_dump_json() if hasattr(body, "model_dump_json") else json.dumps(body)


@dataclass
class Service:
    """The intake on one replica, with a launcher that the test plays."""

    replica: Replica
    launcher: SubmittedRecoveries
    sender: Sender
    app: Any
    problems: dict[str, str]

    @property
    def store(self) -> PostgresStore:
        return self.replica.store

    async def running(self, recovery: RecoveryRecord | None = None) -> RecoveryRecord:
        """What the runner does first with the next recovery that was submitted."""
        record = recovery or await self.launcher.next()
        return await self.store.bind(record.id, flow_run_id=uuid4(), runner="runner-1", lease_s=30)


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {"secrets": [SecretStr(SECRET)], **changes}
    return Settings(**values)


def service_on(replica: Replica, **changes: Any) -> Service:
    launcher = SubmittedRecoveries()
    problems: dict[str, str] = {"database": ""}

    async def readiness() -> dict[str, str]:
        return problems

    made = settings(**changes)
    webhooks = SlackWebhooks(made.alert_hosts)
    app = create_app(replica.store, replica.dispatch, replica.bus, FixedRouter(), launcher, made, readiness, webhooks)
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://upright", timeout=30)
    return Service(replica, launcher, Sender(http), app, problems)
