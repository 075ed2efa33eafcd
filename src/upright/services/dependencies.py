"""What a recovery works with. `upright.bootstrap` wires it; tests bring their own."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from upright.config import Settings
from upright.services.book import Book
from upright.services.guardrails import GuardStore
from upright.services.learning.scorer import Scorer
from upright.services.ports import (
    Dispatch,
    ErrorStore,
    FleetStore,
    Mailer,
    PlatformStore,
    Prober,
    RecoveryStore,
    Webhooks,
)
from upright.services.running import RunningService


class Store(ErrorStore, RecoveryStore, FleetStore, PlatformStore, GuardStore, Protocol):
    """One database stands behind all of them."""


@dataclass(frozen=True)
class Dependencies:
    store: Store
    dispatch: Dispatch
    book: Book
    settings: Settings
    runner: str
    """Name under which this process takes leases; unique for each process."""
    mailer: Mailer | None = None
    """The service's own way to send e-mail; None where UPRIGHT_SMTP_URL is not set."""
    bus: Any = None
    platforms: Mapping[tuple[str, str], RunningService] = field(default_factory=dict[tuple[str, str], RunningService])
    """By tenant and service; those whose processes may be scaled and restarted from here."""
    scorer: Scorer | None = None
    """What has been learned; None scores by the priors."""
    prober: Prober | None = None
    webhooks: Webhooks | None = None


_warm: ContextVar[Dependencies | None] = ContextVar("warm_dependencies", default=None)


def provide(dependencies: Dependencies) -> None:
    """What flows work with that run in this asyncio context and those that descend from it: a runner's own."""
    _warm.set(dependencies)


def provided() -> Dependencies | None:
    return _warm.get()
