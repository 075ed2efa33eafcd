"""What guardrails need kept, for all replicas together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

from upright.domain.guardrails import Guardrails, Trust
from upright.domain.message import Json
from upright.services.guardrails.limits import Scope
from upright.services.guardrails.trust import Record

EVERY = "*"
"""Stands for every tenant, or every service of one."""

Origin = Literal["operator", "application"]
Via = Literal["command line", "link", "prefect", "upright"]


@dataclass(frozen=True)
class Switch:
    """Recovery is stopped here."""

    tenant: str
    service: str
    origin: Origin
    """Who may lift it: an application lifts its own only."""
    by: str
    why: str
    at: datetime

    @property
    def where(self) -> str:
        return "everywhere" if self.service == EVERY else f"for {self.service}"


@dataclass(frozen=True)
class Hold:
    """Recoveries are left to people for a while."""

    tenant: str
    service: str
    fingerprint: str
    """Empty: of the whole service."""
    reason: str
    began_at: datetime
    until: datetime
    recovery_id: UUID | None
    """The recovery whose failure was one too many."""


@dataclass(frozen=True)
class Approval:
    """A person is asked whether an action may be carried out."""

    id: UUID
    recovery_id: UUID
    tenant: str
    service: str
    runbook: str
    strategy: str
    target: str
    values: Json
    plan: str
    """What would be done, in a sentence."""
    status: Literal["waiting", "approved", "rejected", "expired"]
    created_at: datetime
    expires_at: datetime
    expires_in_s: float
    """By the database's clock."""
    decided_by: str = ""
    via: str = ""
    why: str = ""


@dataclass(frozen=True)
class TrustSetting:
    """What was decided of a runbook, or of a strategy in it, below what its file allows."""

    runbook: str
    strategy: str
    """Empty: the whole runbook."""
    level: Trust
    by: str
    why: str
    at: datetime


@dataclass(frozen=True)
class Occupant:
    """An action that wants to be carried out."""

    recovery_id: UUID
    tenant: str
    service: str
    fingerprint: str
    runbook: str
    strategy: str
    scopes: Sequence[Scope] = field(default_factory=list[Scope])


class GuardStore(Protocol):
    async def admit(self, action: Occupant) -> str | None:
        """Take a place for the action, in all its scopes at once. Why it has none, or None. An action that has its
        place keeps it. Raises Stopped."""
        ...

    async def give_back(self, recovery_id: UUID, strategy: str) -> None:
        """The place of an action that was not carried out after all."""
        ...

    async def hold(self, tenant: str, service: str, fingerprint: str, guardrails: Guardrails) -> Hold | None:
        """The hold that recoveries of the fingerprint are under; one that is due begins."""
        ...

    async def holds(self) -> Sequence[Hold]: ...

    async def reset(self, which: str, *, by: str, why: str = "") -> int:
        """End the holds of a service, or of a fingerprint, and forget what they were begun for; how many incidents
        that are known there are. Raises NotFound."""
        ...

    async def withhold(self, recovery_id: UUID, *, epoch: int, why: str) -> None:
        """Note on a recovery that it is not attempted. Raises StaleEpoch."""
        ...

    async def told_since(self, incident_id: UUID, since: datetime) -> bool:
        """Whether people were told of the incident since then."""
        ...

    async def stopped(self, tenant: str, service: str) -> Switch | None: ...

    async def switches(self) -> Sequence[Switch]: ...

    async def stop(self, tenant: str, service: str, *, origin: Origin, by: str, why: str) -> int:
        """Nothing is put in force any more, and what is in force is withdrawn; how many directives that were."""
        ...

    async def start(self, tenant: str, service: str, *, origin: Origin, by: str, why: str) -> int:
        """Lift it; how many switches that were. An operator lifts an application's too."""
        ...

    async def recall(self, tenant: str, service: str) -> None:
        """Make every process look at the desired state again."""
        ...

    async def trust(self, runbook: str | None = None) -> Sequence[TrustSetting]: ...

    async def set_trust(self, runbook: str, strategy: str, level: Trust, *, by: str, why: str) -> None: ...

    async def track_record(self, runbook: str, strategy: str, window: int) -> Record:
        """Of the last verified outcomes since its trust was decided."""
        ...

    async def shadow_decisions(self, runbook: str, strategy: str) -> int:
        """How often it would have acted."""
        ...

    async def ask(
        self, recovery_id: UUID, strategy: str, *, epoch: int, target: str, values: Json, plan: str, within_s: float
    ) -> Approval:
        """Open an approval; the one that is there already, if there is one. Raises StaleEpoch."""
        ...

    async def approval(self, approval_id: UUID) -> Approval:
        """Past its time it is expired. Raises NotFound."""
        ...

    async def approvals_of(self, recovery_id: UUID) -> Mapping[str, Approval]:
        """By strategy."""
        ...

    async def approvals(self, *, waiting: bool = True, limit: int = 100) -> Sequence[Approval]: ...

    async def decide(self, approval_id: UUID, *, approve: bool, by: str, via: Via, why: str = "") -> Approval:
        """The first decision stands: the approval as it is afterwards. Raises NotFound."""
        ...
