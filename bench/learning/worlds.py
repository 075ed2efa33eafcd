"""Worlds: how well each strategy really works, and where. Policies see none of it but outcomes.

A world's true rates stray from the guide's, by error type, service and situation, with an interaction of type and
service. In every third world the failures of one incident hang together (a hidden cause), which all policies assume
not; in every third what works changes midway.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from upright.services.learning import Context
from upright.services.scoring import built_in_priors

PRIORS = built_in_priors()
STRATEGIES = tuple(PRIORS)
RUNBOOKS = {
    "DatabaseError": ("pool_increase", "timeout_increase", "cache_clear"),
    "TimeoutError": ("timeout_increase", "resource_scale", "cache_clear"),
    "MemoryError": ("resource_scale", "cache_clear", "queue_priority"),
    "ConnectionError": ("retry", "circuit_break", "fallback"),
    "ValidationError": ("fallback", "request_throttle"),
    "AuthenticationError": ("retry", "request_throttle"),
    "APIError": ("retry", "timeout_increase", "fallback"),
    "ServiceUnavailableError": ("retry", "circuit_break", "service_restart"),
}
"""The guide's."""
TYPES = tuple(RUNBOOKS)
SEVERITY = {"DatabaseError": "critical", "TimeoutError": "high", "MemoryError": "critical", "ConnectionError": "high"}
SERVICES = ("shop", "billing", "search", "mail", "reports")
SITUATIONS = ("none", "cancelled", "cache", "pool")
ESCALATION_S = 120.0
INCIDENTS_A_DAY = 100


def _logit(rate: float) -> float:
    return math.log(rate / (1 - rate))


@dataclass
class Incident:
    context: Context
    candidates: tuple[str, ...]
    rates: dict[str, float]
    """Of each candidate, for this very incident: what only an oracle knows."""
    outcomes: dict[str, bool]
    """Drawn once, so that every policy meets the same."""
    costs: dict[str, float]
    at: float


@dataclass
class World:
    seed: int
    choice: int | None = None
    """None: the guide's runbooks; else so many of the ten strategies, chosen anew for each incident."""
    changes: bool = False
    hidden_cause: bool = False
    strength: float = 1.0
    _effects: list[dict[tuple[str, ...], float]] = field(default_factory=list[dict[tuple[str, ...], float]])
    _cost_scale: dict[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        random = np.random.default_rng([self.seed, 1])
        self._effects = [self._draw_effects(random)]
        self._effects.append(self._draw_effects(random) if self.changes else self._effects[0])
        self._cost_scale = {one: float(np.exp(random.normal(0, 0.3))) for one in STRATEGIES}

    def _draw_effects(self, random: np.random.Generator) -> dict[tuple[str, ...], float]:
        effects: dict[tuple[str, ...], float] = {}
        for one in STRATEGIES:
            effects[one,] = random.normal(-0.5, 0.8)
            for kind in TYPES:
                effects[one, kind] = random.normal(0, 1.2)
                for service in SERVICES:
                    effects[one, kind, service] = random.normal(0, 0.5)
            for service in SERVICES:
                effects[one, service] = random.normal(0, 0.4)
            for situation in SITUATIONS:
                effects[one, situation] = random.normal(0, 0.8)
        return {key: self.strength * value for key, value in effects.items()}

    def true_rate(self, strategy: str, context: Context, *, late: bool = False) -> float:
        effects = self._effects[1 if late else 0]
        kind, service = context.error_type, context.service
        value = _logit(min(PRIORS[strategy].success_rate, 0.97)) + sum(
            effects[key]
            for key in (
                (strategy,), (strategy, kind), (strategy, kind, service), (strategy, service),
                (strategy, context.situation),
            )
        )  # fmt: skip
        return 1 / (1 + math.exp(-value))

    def true_cost(self, strategy: str) -> float:
        return PRIORS[strategy].cost_s * self._cost_scale[strategy]

    def incidents(self, count: int) -> list[Incident]:
        random = np.random.default_rng([self.seed, 2])
        # Few services and types have most of the errors, as in real life.
        types = random.dirichlet(np.full(len(TYPES), 0.8))
        services = random.dirichlet(np.full(len(SERVICES), 0.8))
        found: list[Incident] = []
        for index in range(count):
            kind, service = str(random.choice(TYPES, p=types)), str(random.choice(SERVICES, p=services))
            situation = str(random.choice(SITUATIONS, p=(0.4, 0.2, 0.2, 0.2)))
            full = situation == "pool"
            context = Context(
                error_type=kind,
                service=service,
                severity=SEVERITY.get(kind, "medium"),
                pool="full" if full else "free",
                pool_percent=100 if full else int(random.integers(5, 60)),
                situation=situation,
                outage=kind == "ServiceUnavailableError" and bool(random.random() < 0.3),
            )
            if self.choice is None:
                candidates = RUNBOOKS[kind]
            else:
                candidates = tuple(str(one) for one in random.choice(STRATEGIES, self.choice, replace=False))
            late = self.changes and index >= count // 2
            common = float(random.normal(0, 1))
            rates: dict[str, float] = {}
            outcomes: dict[str, bool] = {}
            costs: dict[str, float] = {}
            for one in candidates:
                rates[one] = self.true_rate(one, context, late=late)
                rho = 0.5 if self.hidden_cause else 0.0
                latent = math.sqrt(rho) * common + math.sqrt(1 - rho) * float(random.normal(0, 1))
                outcomes[one] = _normal_cdf(latent) < rates[one]
                costs[one] = self.true_cost(one) * float(random.gamma(4, 0.25))
            found.append(Incident(context, candidates, rates, outcomes, costs, index * 86_400 / INCIDENTS_A_DAY))
        return found


def _normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def expected_s(order: tuple[str, ...], incident: Incident, world: World) -> float:
    """Expected time to recovery of an order, by the truth."""
    left, total = 1.0, 0.0
    for one in order:
        total += left * world.true_cost(one)
        left *= 1 - incident.rates[one]
    return total + left * ESCALATION_S


def oracle(incident: Incident, world: World) -> tuple[str, ...]:
    """Descending true rate per true cost, without what is not worth its cost."""
    worth = [one for one in incident.candidates if incident.rates[one] * ESCALATION_S >= world.true_cost(one)]
    return tuple(sorted(worth, key=lambda one: incident.rates[one] / world.true_cost(one), reverse=True))
