"""What learning needs of the outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from upright.domain.message import Json
from upright.errors import UprightError
from upright.services.learning.episode import Episode
from upright.services.learning.learned import Predictor

RELAPSE_S = 900.0
"""An error of the same incident within so long after a recovery, while its change still held, is a relapse."""

Uses = Literal["priors", "beta", "challenger"]
Learning = Literal["off", "beta", "on"]
"""What is allowed at most: priors alone, the Beta model, or a promoted challenger too."""


class ModelRefused(UprightError):
    """A model's file is damaged, foreign, or of a later version."""


@dataclass(frozen=True)
class Outcome:
    """An episode, and whose it is."""

    tenant: str
    episode: Episode


@dataclass(frozen=True)
class Use:
    """What scores for a tenant."""

    uses: Uses = "beta"
    version: int | None = None
    who: str = ""
    why: str = ""
    since: datetime | None = None


class LearningStore(Protocol):
    async def outcomes(self, since: datetime | None, limit: int) -> Sequence[Outcome]:
        """Recoveries that teach something, finished after `since`: the latest `limit`, oldest first."""
        ...

    async def latest_outcome(self) -> datetime | None:
        """When the latest recovery finished."""
        ...

    async def model_uses(self) -> Mapping[str, Use]:
        """By tenant; one that is not named uses Beta."""
        ...

    async def use_model(self, tenant: str, uses: Uses, version: int | None, *, who: str, why: str) -> None: ...


class Models(Protocol):
    """Where trained challengers are."""

    async def challenger(self, tenant: str, version: int) -> tuple[Predictor, datetime]:
        """The challenger of a version, and until when it has seen outcomes. Raises ModelRefused, NotFound."""
        ...

    async def promoted(self, tenant: str, before: int) -> Sequence[int]:
        """Earlier versions that have acted, latest first."""
        ...


@dataclass(frozen=True)
class ModelVersion:
    tenant: str
    version: int
    sha256: str
    """Of the challenger's file; empty if there is none."""
    evaluation: Json
    card: str
    outcomes: int
    trained_until: datetime | None
    promoted_at: datetime | None
    created_at: datetime


class VersionStore(LearningStore, Protocol):
    async def add_version(
        self, tenant: str, *, outcomes: int, trained_until: datetime | None, beta: Json, evaluation: Json
    ) -> int:
        """The number of the new version."""
        ...

    async def complete_version(
        self, tenant: str, version: int, *, artifact: bytes | None, sha256: str, card: str
    ) -> None: ...

    async def versions(self, tenant: str) -> Sequence[ModelVersion]:
        """Latest first."""
        ...

    async def artifact(self, tenant: str, version: int) -> bytes | None: ...
