"""What is simulated, in parts that can run side by side."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.learning.policies import Fixed, PriorPerCost, Product, play
from bench.learning.worlds import ESCALATION_S, PRIORS, STRATEGIES, TYPES, World, expected_s
from upright.services.learning import Context, Decision, Episode, Estimate, Learned, decide
from upright.services.learning.calibration import brier, calibration_error
from upright.services.learning.challenger import TooFewExamples
from upright.services.learning.gate import evaluate, fit_challenger
from upright.services.learning.learned import Predictor

CHECKPOINTS = (200, 1000, 5000)
LENGTH = 5000
RETRAIN_EVERY = 1000
STRENGTHS = (0.5, 1.0, 1.5)
SKIPPED_OUTCOMES = 500


@dataclass
class Played:
    """One world, and every policy in it."""

    seed: int
    changes: bool
    hidden_cause: bool
    strength: float
    choice: int | None
    regret: dict[str, list[float]]
    """Policy to mean regret so far, at each checkpoint."""
    after_change: dict[str, float]
    """Over the last 1,000 incidents."""
    predicted: list[float]
    outcomes: list[bool]
    promotions: int = 0
    fallbacks: int = 0


def world(seed: int, choice: int | None) -> World:
    return World(
        seed,
        choice=choice,
        changes=seed % 3 == 2,
        hidden_cause=seed % 3 == 1,
        strength=STRENGTHS[seed // 3 % 3],
    )


def play_world(seed: int, choice: int | None) -> Played:
    here = world(seed, choice)
    incidents = here.incidents(LENGTH)
    product = Product("learned", seed, retrain_every=RETRAIN_EVERY if choice is None else 0)
    policies = [Fixed(), PriorPerCost(), Product("beta, greedy", seed, epsilon=0.0), product]
    regret: dict[str, list[float]] = {}
    late: dict[str, float] = {}
    for policy in policies:
        found = play(policy, here, incidents)
        regret[policy.name] = [float(found[:count].mean()) for count in CHECKPOINTS]
        late[policy.name] = float(found[-1000:].mean())
    pairs = [
        (episode.predicted[attempt.strategy], attempt.success)
        for episode in product.log
        for attempt in episode.attempts
        if attempt.strategy in episode.predicted
    ][SKIPPED_OUTCOMES:]
    return Played(
        seed, here.changes, here.hidden_cause, here.strength, choice, regret, late,
        [one for one, _ in pairs], [success for _, success in pairs], product.promotions, product.fallbacks,
    )  # fmt: skip


# The gate


@dataclass
class Judged:
    """One candidate in one world: what the gate said, and what is true."""

    kind: str
    seed: int
    passed: bool
    saved: float
    """Share of the expected time to recovery that it really saves, over fresh incidents."""
    estimated: float
    lower: float
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Distorted:
    """A model gone wrong: right about itself, as far as its training goes, and bent by `bend`."""

    model: Predictor
    bend: Callable[[str, str, float], float]

    def predict(self, context: Context, strategies: Sequence[str]) -> Mapping[str, float]:
        rates = self.model.predict(context, strategies)
        return {one: self.bend(context.error_type, one, rate) for one, rate in rates.items()}


def _contrary(_: str, __: str, rate: float) -> float:
    return 1 - rate


def _noisy(kind: str, strategy: str, rate: float) -> float:
    shift = 2.0 * math.sin(sum(map(ord, kind)) * 12.9898 + sum(map(ord, strategy)) * 78.233)
    odds = math.log(min(max(rate, 0.001), 0.999) / (1 - min(max(rate, 0.001), 0.999))) + shift
    return 1 / (1 + math.exp(-odds))


def _trained(episodes: Sequence[Episode], priors: Mapping[str, object]) -> Predictor:
    return fit_challenger(episodes, PRIORS)


KINDS: dict[str, Callable[[Predictor], Predictor]] = {
    "trained": lambda model: model,
    "noisy": lambda model: Distorted(model, _noisy),
    "contrary": lambda model: Distorted(model, _contrary),
}


def judge_world(seed: int, length: int) -> list[Judged]:
    here = world(seed, None)
    incidents = here.incidents(length + 1000)
    product = Product("log", seed)
    play(product, here, incidents[:length])
    incumbent = product.learned
    judged: list[Judged] = []
    for kind, made in KINDS.items():
        try:
            final = made(fit_challenger(product.log, PRIORS))
        except TooFewExamples:
            continue
        found = evaluate(product.log, PRIORS, fit=lambda log, priors, made=made: made(_trained(log, priors)))
        rival = Learned(incumbent.beta, incumbent.costs, final, epsilon=0.0)
        settled = Learned(incumbent.beta, incumbent.costs, epsilon=0.0)
        ours = theirs = 0.0
        for incident in incidents[length:]:
            for learned, add in ((settled, 0), (rival, 1)):
                decision = learned.decide(incident.context, incident.candidates, now=incident.at)
                seconds = expected_s(tuple(one.strategy for one in decision.order), incident, here)
                ours, theirs = (ours + seconds, theirs) if add == 0 else (ours, theirs + seconds)
        judged.append(
            Judged(kind, seed, found.passed, 1 - theirs / ours, found.difference, found.lower, found.refusals)
        )
    return judged


# Exploration


@dataclass
class Draws:
    count: int = 0
    explored: int = 0
    forbidden: int = 0
    share_where_allowed: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict[str, int])


MILD = {"retry", "timeout_increase", "cache_clear", "pool_increase", "queue_priority"}
"""Written out here, so that it is the promise that is checked, not the code that keeps it."""


def draw_explorations(count: int = 100_000, seed: int = 0) -> Draws:
    random = np.random.default_rng([seed, 4])
    found, allowed = Draws(), 0
    for _ in range(count):
        context = Context(
            error_type=str(random.choice(TYPES)),
            service="shop",
            severity=str(random.choice(["critical", "high", "medium", "low"])),
            outage=bool(random.random() < 0.2),
        )
        names = random.choice(STRATEGIES, int(random.integers(1, 6)), replace=False)
        estimates = [
            Estimate(str(name), float(random.uniform(0.05, 0.95)), float(random.gamma(1.5, 4) + 0.05), weight=6.0)
            for name in names
        ]
        decision = decide(context, estimates, draw=float(random.random()), now=0)
        found.count += 1
        allowed += decision.propensity < 1
        if decision.explored:
            found.explored += 1
            for why in violations(context, decision, estimates):
                found.forbidden += 1
                found.kinds[why] = found.kinds.get(why, 0) + 1
    found.share_where_allowed = found.explored / allowed if allowed else 0.0
    return found


def violations(context: Context, decision: Decision, estimates: Sequence[Estimate]) -> list[str]:
    greedy = sorted(estimates, key=lambda one: one.success_rate / one.cost_s, reverse=True)
    order = list(decision.order)
    broken: list[str] = []
    if context.severity == "critical":
        broken.append("critical")
    if context.outage:
        broken.append("outage")
    if order[:2] != [greedy[1], greedy[0]] or order[2:] != greedy[2:]:
        broken.append("more than the first two")
    if order[0].strategy not in MILD or order[0].cost_s > 10:
        broken.append("not cheap or not allowed")
    if {order[0].strategy, order[1].strategy} & {"service_restart", "resource_scale"}:
        broken.append("restart or scale")
    return broken


# Speed


@dataclass
class Speed:
    p50_ms: float
    p99_ms: float
    """Of the median round: the rest is what else the machine did."""
    worst_p99_ms: float
    cpu_p99_ms: float
    """What it computes itself, whatever else the machine does."""


def scoring_speed(rounds: int = 9, calls: int = 500) -> Speed:
    """`rank` as a recovery calls it: context, preconditions, estimates, decision, with a promoted challenger."""
    from upright.domain.runbook import Runbook
    from upright.services.learning.context import context_of
    from upright.services.scoring import rank
    from upright.services.strategies import Fleet
    from upright.testing.events import CANCELLED_FOR_TIMEOUT, DJANGO_OPERATIONAL_ERROR, EXHAUSTED, error_event

    here = world(0, None)
    product = Product("log", 0)
    play(product, here, here.incidents(LENGTH))
    learned = Learned(product.learned.beta, product.learned.costs, fit_challenger(product.log, PRIORS), "model 1")
    runbook = Runbook.model_validate({"name": "all-of-them", "steps": [{"strategy": one} for one in STRATEGIES]})
    measurements = {**CANCELLED_FOR_TIMEOUT, **EXHAUSTED, "cache": {"alias": "default", "key": "catalog:42"}}
    event = error_event(DJANGO_OPERATIONAL_ERROR, measurements=measurements)
    fleet = Fleet(waiter_present=True)
    severity = event.error.severity or _low()
    found: list[list[float]] = []
    computed: list[float] = []
    for _ in range(rounds):
        taken: list[float] = []
        for index in range(calls):
            began, busy = time.perf_counter(), time.thread_time()
            rank(runbook, event, fleet, PRIORS, learned, context_of(event, severity), draw=index / calls)
            taken.append((time.perf_counter() - began) * 1000)
            computed.append((time.thread_time() - busy) * 1000)
        found.append(taken)
    tails = [float(np.percentile(taken, 99)) for taken in found]
    return Speed(
        float(np.percentile(np.concatenate(found), 50)),
        float(np.median(tails)),
        max(tails),
        float(np.percentile(computed, 99)),
    )


def _low():
    from upright.domain.severity import Severity

    return Severity.LOW


def cold_start_agrees(count: int = 2000) -> float:
    """Share of incidents for which the order with nothing learned is that of prior p/cost."""
    incidents = [*world(1, None).incidents(count // 2), *world(1, 3).incidents(count // 2)]
    fresh, prior = Product("fresh", 0, epsilon=0.0), PriorPerCost()
    same = 0
    for incident in incidents:
        ours = [one.strategy for one in fresh.choose(incident).order]
        theirs = sorted(
            incident.candidates, key=lambda one: PRIORS[one].success_rate / PRIORS[one].cost_s, reverse=True
        )
        same += ours == theirs == [one.strategy for one in prior.choose(incident).order]
    return same / len(incidents)


def one_thread() -> None:
    """For a worker process: its share of the machine is one core."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


__all__ = [
    "ESCALATION_S", "Draws", "Judged", "Played", "Speed", "brier", "calibration_error", "cold_start_agrees",
    "draw_explorations", "judge_world", "one_thread", "play_world", "scoring_speed",
]  # fmt: skip
