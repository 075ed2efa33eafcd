"""Learning: rates and costs from outcomes, the order that follows, and what it may never do."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upright.domain.verdict import Verdict
from upright.services.learning import Attempt, Beta, Context, Costs, Decision, Episode, Estimate, Learned, decide
from upright.services.learning.calibration import brier, calibration_error, reliability
from upright.services.learning.challenger import TooFewExamples, features, train
from upright.services.learning.costs import DISRUPTIVE
from upright.services.learning.drift import watch
from upright.services.learning.episode import episode_of, examples
from upright.services.learning.gate import evaluate
from upright.services.learning.policy import EXPLORABLE, MAX_EXPLORED_COST_S, STOP_MEMORY_S
from upright.services.ports import ActionRecord
from upright.services.scoring import built_in_priors

PRIORS = built_in_priors()
SHOP = Context("OperationalError", "shop", severity="high")
FULL = replace(SHOP, pool="full", pool_percent=100, situation="pool")


def learned(*attempts: tuple[Context, str, bool, int], **fields: Any) -> Learned:
    found = Learned(Beta(PRIORS), Costs(PRIORS), **fields)
    for context, strategy, success, count in attempts:
        for _ in range(count):
            found.learn(Episode(context, (strategy,), (Attempt(strategy, success, PRIORS[strategy].cost_s),), at=1000))
    return found


def order(decision: Decision) -> list[str]:
    return [one.strategy for one in decision.order]


# Rates and costs


def test_with_nothing_learned_the_order_is_that_of_the_priors() -> None:
    by_prior = sorted(PRIORS, key=lambda one: PRIORS[one].success_rate / PRIORS[one].cost_s, reverse=True)
    assert order(learned().decide(SHOP, list(PRIORS))) == by_prior
    assert order(Learned.nothing(PRIORS).decide(SHOP, list(PRIORS))) == by_prior


def test_the_first_outcome_counts() -> None:
    before = learned().estimate(SHOP, "cache_clear").success_rate
    after = learned((SHOP, "cache_clear", False, 1)).estimate(SHOP, "cache_clear").success_rate
    assert before == PRIORS["cache_clear"].success_rate
    assert after < before


def test_what_failed_again_and_again_is_tried_later() -> None:
    steps = ["cache_clear", "timeout_increase"]
    assert order(learned().decide(SHOP, steps)) == ["cache_clear", "timeout_increase"]
    taught = learned((SHOP, "cache_clear", False, 12), (SHOP, "timeout_increase", True, 12))
    assert order(taught.decide(SHOP, steps)) == ["timeout_increase", "cache_clear"]


def test_other_services_and_types_teach_less_the_further_they_are() -> None:
    other_service, other_type = replace(SHOP, service="mail"), replace(SHOP, error_type="TimeoutError")
    found = learned((SHOP, "retry", False, 20))
    rates = [found.estimate(context, "retry").success_rate for context in (SHOP, other_service, other_type)]
    assert rates == sorted(rates)
    assert rates[2] < PRIORS["retry"].success_rate


def test_the_evidence_names_where_it_comes_from() -> None:
    found = learned((FULL, "pool_increase", True, 12), (FULL, "pool_increase", False, 2))
    assert found.estimate(FULL, "pool_increase").evidence == "12 of 14 in this service, pool at 100 %"
    assert found.estimate(SHOP, "pool_increase").evidence == "12 of 14 in this service"
    elsewhere = found.estimate(replace(SHOP, service="mail"), "pool_increase").evidence
    assert elsewhere == "12 of 14 for OperationalError in other services"
    assert found.estimate(replace(SHOP, error_type="KeyError"), "pool_increase").evidence == "12 of 14 for other errors"
    assert found.estimate(SHOP, "retry").evidence == ""


def test_costs_follow_what_was_measured_for_those_never_tried_too() -> None:
    costs = Costs(PRIORS)
    for _ in range(50):
        costs.add(Attempt("timeout_increase", True, 0.4))
    assert costs.cost_s("timeout_increase") == pytest.approx(0.4, rel=0.2)
    assert costs.cost_s("cache_clear") < PRIORS["cache_clear"].cost_s / 2
    assert costs.cost_s("service_restart") == PRIORS["service_restart"].cost_s


def test_the_state_of_beta_survives_json() -> None:
    found = learned((FULL, "pool_increase", True, 3), (SHOP, "retry", False, 2)).beta
    again = Beta.from_json(json.loads(json.dumps(found.as_json())), PRIORS)
    assert again.cells == found.cells


@pytest.mark.parametrize(
    "damage",
    [
        [],
        {"format": "another"},
        {"format": "upright-beta", "format_version": 2, "cells": []},
        {"format": "upright-beta", "format_version": 1},
        {"format": "upright-beta", "format_version": 1, "cells": [[["retry"], 1, 2, 0.0]]},
        {"format": "upright-beta", "format_version": 1, "cells": [[["retry"], "many", 2, 0.0]]},
        {"format": "upright-beta", "format_version": 1, "cells": [[["retry"], 2, 1, math.inf]]},
    ],
)
def test_a_state_that_can_not_be_is_refused(damage: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        Beta.from_json(damage, PRIORS)


# The order: exploration and stop


def test_exploration_swaps_the_first_two_and_says_how_likely_that_was() -> None:
    steps = ["timeout_increase", "cache_clear", "pool_increase"]
    plain = learned().decide(SHOP, steps, draw=0.5)
    explored = learned().decide(SHOP, steps, draw=0.01)
    assert order(plain) == ["cache_clear", "timeout_increase", "pool_increase"]
    assert plain.propensities == {"cache_clear": 0.95, "timeout_increase": 0.95, "pool_increase": 1.0}
    assert order(explored) == ["timeout_increase", "cache_clear", "pool_increase"]
    assert explored.propensities == {"cache_clear": 0.05, "timeout_increase": 0.05, "pool_increase": 1.0}
    assert (plain.explored, explored.explored) == (False, True)


def test_what_is_decided_is_not_explored() -> None:
    found = learned((SHOP, "retry", True, 100), (SHOP, "cache_clear", False, 100))
    decision = found.decide(SHOP, ["retry", "cache_clear"], draw=0.0)
    assert (decision.explored, decision.propensity) == (False, 1.0)


@pytest.mark.parametrize(
    ("context", "steps"),
    [
        (replace(SHOP, severity="critical"), ["cache_clear", "timeout_increase"]),
        (replace(SHOP, outage=True), ["cache_clear", "timeout_increase"]),
        (SHOP, ["retry", "circuit_break"]),
        (SHOP, ["retry", "service_restart"]),
        (SHOP, ["resource_scale", "service_restart"]),
        (SHOP, ["retry"]),
    ],
)
def test_nothing_is_explored_where_it_could_hurt(context: Context, steps: list[str]) -> None:
    decision = learned().decide(context, steps, draw=0.0)
    assert (decision.explored, decision.propensity) == (False, 1.0)
    assert order(decision) == order(learned().decide(context, steps, draw=1.0))


@given(
    rates=st.lists(st.tuples(st.sampled_from(sorted(PRIORS)), st.floats(0.01, 0.99), st.floats(0.05, 60)), max_size=6),
    severity=st.sampled_from(["critical", "high", "medium", "low"]),
    outage=st.booleans(),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_no_draw_explores_what_is_forbidden(
    rates: list[tuple[str, float, float]], severity: str, outage: bool, draw: float
) -> None:
    context = replace(SHOP, severity=severity, outage=outage)
    estimates = [Estimate(name, rate, cost) for name, rate, cost in {one[0]: one for one in rates}.values()]
    decision = decide(context, estimates, draw=draw, now=0)
    greedy = sorted(estimates, key=lambda one: one.score, reverse=True)
    assert sorted(order(decision)) == sorted(one.strategy for one in estimates)
    assert order(decision)[2:] == [one.strategy for one in greedy][2:]
    if decision.explored:
        first = decision.order[0]
        assert severity != "critical"
        assert not outage
        assert first.strategy in EXPLORABLE
        assert first.cost_s <= MAX_EXPLORED_COST_S
        assert not DISRUPTIVE & {one.strategy for one in decision.order[:2]}
        assert draw < 0.05


def test_the_share_of_explorations_is_the_propensity_that_is_logged() -> None:
    found, dice = learned(), random.Random(3)
    steps = ["cache_clear", "timeout_increase"]
    explored = sum(found.decide(SHOP, steps, draw=dice.random()).explored for _ in range(20_000))
    assert explored / 20_000 == pytest.approx(0.05, abs=0.006)


def test_a_strategy_that_is_not_worth_its_cost_is_left_out_for_a_while() -> None:
    found = learned((SHOP, "service_restart", False, 60))
    decision = found.decide(SHOP, ["retry", "service_restart"], now=1000)
    assert order(decision) == ["retry"]
    [(stopped, why)] = decision.stopped
    assert stopped.strategy == "service_restart"
    assert why == "left out: 0 of 60 in this service; 30 s of trying is more than it can be expected to save"
    later = found.decide(SHOP, ["retry", "service_restart"], now=1000 + STOP_MEMORY_S + 1)
    assert order(later) == ["retry", "service_restart"]


def test_bad_luck_is_no_reason_to_leave_a_strategy_out() -> None:
    found = learned((SHOP, "service_restart", False, 5))
    assert not found.decide(SHOP, ["service_restart"], now=1000).stopped


# What counts as an outcome


def outcome(
    *verdicts: tuple[str, Verdict], relapsed: bool = False, attributed: bool = True, **explanation: Any
) -> Episode | None:
    actions = [
        ActionRecord(uuid4(), index, strategy, verdict, duration_ms=500, attributed=attributed)
        for index, (strategy, verdict) in enumerate(verdicts)
    ]
    candidates = [strategy for strategy, _ in verdicts]
    learning = {"context": SHOP.as_json(), "candidates": candidates, "propensity": 0.95}
    return episode_of(
        {"order": "scored", "learning": learning, **explanation}, actions, finished_at=datetime.now(UTC),
        relapsed=relapsed,
    )  # fmt: skip


def test_verified_verdicts_teach() -> None:
    found = outcome(("retry", Verdict.NOT_RECOVERED), ("cache_clear", Verdict.RECOVERED))
    assert found is not None
    assert found.attempts == (Attempt("retry", False, 0.5), Attempt("cache_clear", True, 0.5))
    assert (found.complete, found.propensity, found.context) == (True, 0.95, SHOP)


@pytest.mark.parametrize("verdict", [Verdict.UNKNOWN, Verdict.SKIPPED, Verdict.REFUSED, Verdict.FAILED])
def test_what_was_not_verified_teaches_nothing(verdict: Verdict) -> None:
    assert outcome(("retry", verdict)) is None
    found = outcome(("retry", verdict), ("cache_clear", Verdict.RECOVERED))
    assert found is not None
    assert [one.strategy for one in found.attempts] == ["cache_clear"]


def test_an_order_that_the_policy_did_not_choose_says_nothing_of_the_policy() -> None:
    learning = {"context": SHOP.as_json(), "candidates": ["retry"], "propensity": 0.95, "arranged": True}
    found = outcome(("retry", Verdict.RECOVERED), learning=learning)
    assert found is not None
    assert (found.complete, found.attempts) == (False, (Attempt("retry", True, 0.5),))


def test_what_another_recovery_did_teaches_nothing() -> None:
    assert outcome(("retry", Verdict.RECOVERED), attributed=False) is None


def test_a_relapse_counts_as_failed_but_not_for_a_retry() -> None:
    found = outcome(("timeout_increase", Verdict.RECOVERED), relapsed=True)
    assert found is not None
    assert not found.attempts[0].success
    found = outcome(("retry", Verdict.RECOVERED), relapsed=True)
    assert found is not None
    assert found.attempts[0].success


def test_a_fixed_order_says_nothing_of_the_policy() -> None:
    found = outcome(("retry", Verdict.RECOVERED), order="fixed")
    assert found is not None
    assert not found.complete


def test_a_record_of_an_older_version_teaches_nothing() -> None:
    assert outcome(("retry", Verdict.RECOVERED), learning={}) is None
    assert outcome(("retry", Verdict.RECOVERED), learning="?") is None


# Calibration


def test_brier_and_calibration_error() -> None:
    assert brier([1.0, 0.0], [True, True]) == 0.5
    assert calibration_error([0.2] * 10, [True, True, *[False] * 8]) == pytest.approx(0)
    assert calibration_error([0.9] * 10, [False] * 10) == pytest.approx(0.9)
    assert [one.count for one in reliability([0.05, 0.95, 1.0], [False, True, True])] == [1, 2]


# The challenger and its gate


def history(count: int, *, seed: int = 1, explore: float = 0.05) -> list[Episode]:
    """A log of a world where retry works for one service only, and timeout_increase for the other."""
    dice, found = random.Random(seed), Learned(Beta(PRIORS), Costs(PRIORS), epsilon=explore)
    log: list[Episode] = []
    for index in range(count):
        context = Context("APIError", dice.choice(["shop", "mail"]), severity="medium")
        works = {"cache_clear": 0.9, "timeout_increase": 0.2}
        if context.service == "mail":
            works = {"cache_clear": 0.2, "timeout_increase": 0.9}
        decision = found.decide(context, list(works), draw=dice.random(), now=float(index))
        attempts: list[Attempt] = []
        for one in order(decision):
            attempts.append(Attempt(one, dice.random() < works[one], PRIORS[one].cost_s))
            if attempts[-1].success:
                break
        log.append(Episode(context, tuple(works), tuple(attempts), decision.propensity, at=float(index)))
        found.learn(log[-1])
    return log


def test_the_challenger_learns_what_works_where() -> None:
    model = train(examples(history(400)), PRIORS)
    shop, mail = Context("APIError", "shop", severity="medium"), Context("APIError", "mail", severity="medium")
    assert model.predict(shop, ["cache_clear"])["cache_clear"] > 0.7
    assert model.predict(mail, ["cache_clear"])["cache_clear"] < 0.4
    assert model.predict(shop, ["service_restart"]) == {}


def test_its_arithmetic_is_that_of_scikit_learn() -> None:
    model = train(examples(history(300)), PRIORS)
    for service in ("shop", "mail", "never seen"):
        context = Context("APIError", service, severity="medium")
        rows = model.vectorizer.transform([features(context, "cache_clear")])
        theirs = model.classifier.predict_proba(rows)[0, 1]
        assert model.predict(context, ["cache_clear"])["cache_clear"] == pytest.approx(theirs, abs=1e-9)


def test_too_little_is_not_trained_on() -> None:
    with pytest.raises(TooFewExamples, match="it takes 50"):
        train(examples(history(20)), PRIORS)
    assert not evaluate(history(20), PRIORS).passed


class Contrary:
    """Believes in the opposite of what works."""

    def predict(self, context: Context, strategies: list[str]) -> dict[str, float]:
        works = {"cache_clear": context.service == "mail", "timeout_increase": context.service != "mail"}
        return {one: 0.95 if works[one] else 0.05 for one in strategies}


def test_the_gate_refuses_a_model_that_is_worse() -> None:
    found = evaluate(history(1500), PRIORS, fit=lambda *_: Contrary())  # pyright: ignore
    assert not found.passed
    assert found.disagreements > 100
    assert found.brier_challenger > found.brier_incumbent


def test_the_gate_can_decide_nothing_early() -> None:
    found = evaluate(history(120), PRIORS)
    assert any("effective sample size" in why or "held out" in why for why in found.refusals), found


class Constant:
    def __init__(self, rate: float) -> None:
        self.rate = rate

    def predict(self, context: Context, strategies: list[str]) -> dict[str, float]:
        return dict.fromkeys(strategies, self.rate)


def test_a_model_that_stops_predicting_is_noticed() -> None:
    log = history(400)
    before = Learned(Beta(PRIORS), Costs(PRIORS)).after(log[:300])
    assert watch(log[300:], Constant(0.01), before).broken  # pyright: ignore
    assert not watch(log[300:], train(examples(log[:300]), PRIORS), before).broken
    assert not watch(log[300:320], Constant(0.01), before).broken  # pyright: ignore


def test_a_challenger_swaps_only_where_exploration_may() -> None:
    preference = {"retry": 0.1, "cache_clear": 0.9, "timeout_increase": 0.99}

    class Prefers:
        def predict(self, context: Context, strategies: list[str]) -> dict[str, float]:
            return {one: preference[one] for one in strategies}

    steps = ["retry", "cache_clear", "timeout_increase"]
    rival = learned(challenger=Prefers(), source="model 3", epsilon=0.0)
    decision = rival.decide(SHOP, steps)
    assert order(decision) == ["cache_clear", "retry", "timeout_increase"]
    assert decision.order[0].evidence == "model 3 says 90%"
    assert order(rival.decide(replace(SHOP, severity="critical"), steps))[0] == "retry"
    assert order(rival.decide(replace(SHOP, outage=True), steps))[0] == "retry"


def test_the_service_starts_without_scikit_learn() -> None:
    """Its import takes a second and more; only training and promoted models need it."""
    code = (
        "import sys, upright.bootstrap, upright.cli; print({'sklearn', 'skops', 'scipy', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
