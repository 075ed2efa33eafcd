"""The scorer: what has been learned, kept up to date beside the recoveries that use it.

Scoring itself touches no database: it reads a value that `refresh` puts in place. Outcomes are read incrementally.
Those young enough to relapse yet are read again each time; older ones are settled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from upright.errors import UprightError
from upright.services.learning.beta import Beta
from upright.services.learning.costs import Costs
from upright.services.learning.drift import Drift, watch
from upright.services.learning.episode import Episode
from upright.services.learning.estimate import Prior
from upright.services.learning.learned import Learned, Predictor
from upright.services.learning.policy import EPSILON, ESCALATION_S
from upright.services.learning.ports import RELAPSE_S, Learning, LearningStore, Models, Outcome, Use

logger = logging.getLogger("upright.learning")

SETTLED_S = RELAPSE_S + 60
HISTORY = 20_000
"""Recoveries that are read at a start, the latest."""


@dataclass
class _Tenant:
    settled: Learned
    recent: list[Episode] = field(default_factory=list[Episode])
    since_training: list[Episode] = field(default_factory=list[Episode])
    """The settled ones that came after the challenger was trained, for the watch."""
    use: Use = field(default_factory=Use)
    challenger: Predictor | None = None
    label: str = ""
    at_training: Learned | None = None
    problem: str = ""
    """Why it doesn't use what it should, or ""."""


class Scorer:
    def __init__(
        self,
        store: LearningStore,
        models: Models,
        priors: Mapping[str, Prior],
        *,
        learning: Learning = "on",
        epsilon: float = EPSILON,
        escalation_s: float = ESCALATION_S,
        name: str = "service",
    ) -> None:
        self._store, self._models, self._priors = store, models, priors
        self._learning, self._epsilon, self._escalation_s, self._name = learning, epsilon, escalation_s, name
        self._learned: Mapping[str, Learned] = {}
        self._nothing = Learned.nothing(priors)
        self._fresh = replace(
            self._nothing, source="beta", epsilon=epsilon, escalation_s=escalation_s
        ) if learning != "off" else self._nothing  # fmt: skip
        self._tenants: dict[str, _Tenant] = {}
        self._watermark: datetime | None = None
        self._seen: tuple[datetime | None, Mapping[str, Use]] | None = None
        self._unsettled = False

    def learned(self, tenant: str) -> Learned:
        return self._learned.get(tenant, self._fresh)

    def problems(self) -> Mapping[str, str]:
        """By tenant: why it scores with less than it should."""
        return {name: one.problem for name, one in self._tenants.items() if one.problem}

    async def follow(self, interval_s: float) -> None:
        """Refresh until cancelled."""
        while True:
            try:
                await self.refresh()
            except Exception as error:
                # Scoring goes on with what it knows.
                logger.warning("What was learned can't be brought up to date, trying again: %s", error)
            await asyncio.sleep(interval_s)

    async def refresh(self) -> None:
        if self._learning == "off":
            return
        latest, uses = await asyncio.gather(self._store.latest_outcome(), self._store.model_uses())
        if (latest, uses) == self._seen and not self._unsettled:
            return
        outcomes = await self._store.outcomes(self._watermark, HISTORY)
        settled_until = time.time() - SETTLED_S
        await asyncio.to_thread(self._digest, outcomes, settled_until)
        for name in {*self._tenants, *uses}:
            await self._choose(name, uses.get(name, Use()))
        self._learned = {name: self._combined(one) for name, one in self._tenants.items()}
        self._seen = latest, uses
        self._unsettled = any(one.recent for one in self._tenants.values())

    def _digest(self, outcomes: Sequence[Outcome], settled_until: float) -> None:
        for tenant in self._tenants.values():
            tenant.recent = []
        for outcome in outcomes:
            tenant = self._tenant(outcome.tenant)
            if outcome.episode.at <= settled_until:
                tenant.settled.learn(outcome.episode)
                if tenant.challenger is not None:
                    tenant.since_training.append(outcome.episode)
                self._watermark = datetime.fromtimestamp(outcome.episode.at, UTC)
            else:
                tenant.recent.append(outcome.episode)

    def _tenant(self, name: str) -> _Tenant:
        if name not in self._tenants:
            self._tenants[name] = _Tenant(Learned(Beta(self._priors), Costs(self._priors)))
        return self._tenants[name]

    def _combined(self, tenant: _Tenant) -> Learned:
        if tenant.use.uses == "priors":
            return self._nothing
        return replace(
            tenant.settled.after(tenant.recent),
            challenger=tenant.challenger,
            source=tenant.label or "beta",
            epsilon=self._epsilon,
            escalation_s=self._escalation_s,
        )

    async def _choose(self, name: str, use: Use) -> None:
        tenant = self._tenant(name)
        if use != tenant.use or (use.uses == "challenger" and tenant.challenger is None and not tenant.problem):
            tenant.use, tenant.challenger, tenant.label, tenant.problem = use, None, "", ""
            if use.uses == "challenger" and use.version is not None and self._learning == "on":
                await self._load(name, tenant, use.version)
        if tenant.challenger is not None and tenant.at_training is not None:
            following = [*tenant.since_training, *tenant.recent]
            found = await asyncio.to_thread(watch, following, tenant.challenger, tenant.at_training)
            if found.broken:
                await self._fall_back(name, tenant, found)

    async def _load(self, name: str, tenant: _Tenant, version: int) -> None:
        for candidate in (version, *await self._models.promoted(name, version)):
            try:
                tenant.challenger, until = await self._models.challenger(name, candidate)
            except UprightError as error:
                logger.error("Model %s of tenant %s is not used: %s", candidate, name, error)  # noqa: TRY400  # expected
                tenant.problem = f"model {candidate}: {error}"
                continue
            tenant.label = f"model {candidate}"
            tenant.at_training, tenant.since_training = await self._as_of(name, until)
            break
        if tenant.problem:
            logger.error("Tenant %s scores with %s instead of model %s.", name, tenant.label or "beta", version)

    async def _as_of(self, name: str, until: datetime) -> tuple[Learned, list[Episode]]:
        """The incumbent as it was when the challenger was trained, and the settled episodes since."""
        outcomes = [one for one in await self._store.outcomes(None, HISTORY) if one.tenant == name]
        end, settled = until.timestamp(), time.time() - SETTLED_S
        before = [one.episode for one in outcomes if one.episode.at <= end]
        after = [one.episode for one in outcomes if end < one.episode.at <= settled]
        return Learned(Beta(self._priors), Costs(self._priors)).after(before), after

    async def _fall_back(self, name: str, tenant: _Tenant, found: Drift) -> None:
        why = (
            f"its Brier score over the last {found.outcomes} outcomes is {found.brier_challenger:.3f}, "
            f"Beta's {found.brier_incumbent:.3f}"
        )
        logger.error("Tenant %s falls back from %s to Beta: %s", name, tenant.label, why)
        tenant.challenger, tenant.label = None, ""
        tenant.problem = f"fell back to Beta: {why}"
        with contextlib.suppress(UprightError):
            await self._store.use_model(name, "beta", None, who=self._name, why=f"drift: {why}")
