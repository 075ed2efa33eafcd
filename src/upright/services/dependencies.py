"""What a recovery works with. `upright.bootstrap` wires it; tests bring their own."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from upright.config import Settings
from upright.services.book import Book
from upright.services.ports import Dispatch, ErrorStore, FleetStore, Mailer, Prober, RecoveryStore


class Store(ErrorStore, RecoveryStore, FleetStore, Protocol):
    """One database stands behind all three."""


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
    prober: Prober | None = None


_warm: ContextVar[Dependencies | None] = ContextVar("warm_dependencies", default=None)


def provide(dependencies: Dependencies) -> None:
    """What flows work with that run in this asyncio context and those that descend from it: a runner's own."""
    _warm.set(dependencies)


def provided() -> Dependencies | None:
    return _warm.get()
