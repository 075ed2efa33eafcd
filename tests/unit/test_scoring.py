"""Strategies are tried by expected success per cost; what can't help is not tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from upright.adapters import runbook_files
from upright.services.learning.learned import Learned
from upright.services.scoring import Prior, Ranking, arranged, built_in_priors, rank
from upright.services.strategies import STRATEGIES, Fleet
from upright.testing.events import CANCELLED_FOR_TIMEOUT, DJANGO_OPERATIONAL_ERROR, EXHAUSTED, error_event

BOOK = runbook_files.load(Path(__file__).parents[2])
BOTH = {
    **EXHAUSTED,
    "query_cancelled": "statement_timeout",
    "databases": {"default": {"statement_timeout_ms": 400, "max_connections": 100}},
    "cache": {"alias": "default", "key": "catalog:42"},
}


def ranked(measurements: dict[str, object], **changes: object) -> tuple[list[str], dict[str, str]]:
    runbook = BOOK.runbook("database-error").model_copy(update=changes)
    event = error_event(DJANGO_OPERATIONAL_ERROR, measurements=measurements)
    ranking = rank(runbook, event, Fleet(waiter_present=True), BOOK.priors)
    return [one.strategy for one in ranking.tried], {one.strategy: one.unmet or "" for one in ranking.skipped}


def test_order_is_by_success_per_cost() -> None:
    assert ranked(BOTH)[0] == ["cache_clear", "timeout_increase", "pool_increase"]


def test_a_fixed_order_is_the_runbooks() -> None:
    assert ranked(BOTH, order="fixed")[0] == ["pool_increase", "timeout_increase", "cache_clear"]


def test_what_does_not_apply_is_skipped_with_its_reason() -> None:
    tried, skipped = ranked(CANCELLED_FOR_TIMEOUT)
    assert tried == ["timeout_increase"]
    assert skipped == {
        "pool_increase": "the process has no connection pool",
        "cache_clear": "no cache key is known to have failed, and clearing everything on a guess makes things worse",
    }


def test_the_order_is_explained() -> None:
    runbook = BOOK.runbook("database-error")
    event = error_event(DJANGO_OPERATIONAL_ERROR, measurements=CANCELLED_FOR_TIMEOUT)
    explanation = rank(runbook, event, Fleet(), BOOK.priors).explanation()
    assert explanation["order"] == "scored"
    assert explanation["tried"] == [
        {
            "strategy": "timeout_increase",
            "success_rate": 0.65,
            "cost_s": 4,
            "score": 0.1625,
            "reason": "65% expected at 4 s: 0.163 a second",
        }
    ]


def test_equal_scores_keep_the_runbooks_order() -> None:
    priors = dict.fromkeys(STRATEGIES, Prior(0.5, 1))
    runbook = BOOK.runbook("database-error")
    event = error_event(DJANGO_OPERATIONAL_ERROR, measurements=BOTH)
    ranking = rank(runbook, event, Fleet(waiter_present=True), priors)
    assert [one.strategy for one in ranking.tried] == ["pool_increase", "timeout_increase", "cache_clear"]


def test_an_edited_prior_changes_the_order(tmp_path: Path) -> None:
    path = tmp_path / "priors.json"
    path.write_text('{"strategies": {"pool_increase": {"success_rate": 0.9, "cost_s": 1}}}')
    priors = runbook_files.priors(path)
    assert priors["retry"] == built_in_priors()["retry"]
    event = error_event(DJANGO_OPERATIONAL_ERROR, measurements=BOTH)
    ranking = rank(BOOK.runbook("database-error"), event, Fleet(waiter_present=True), priors)
    assert ranking.tried[0].strategy == "pool_increase"


def explored(draw: float) -> Ranking:
    """Scored with exploration: cache_clear and timeout_increase change places in one case of twenty."""
    event = error_event(DJANGO_OPERATIONAL_ERROR, measurements=BOTH)
    learned = replace(Learned.nothing(BOOK.priors), epsilon=0.05)
    return rank(BOOK.runbook("database-error"), event, Fleet(waiter_present=True), BOOK.priors, learned, draw=draw)


def last(*strategies: str) -> Callable[[Ranking], Ranking]:
    return lambda one: replace(one, tried=sorted(one.tried, key=lambda choice: choice.strategy in strategies))


def told(ranking: Ranking) -> tuple[list[str], object, object, object]:
    learning = ranking.learning
    order = [one.strategy for one in ranking.tried]
    return order, learning["propensity"], learning["explored"], learning.get("arranged", False)


@pytest.mark.parametrize(
    ("asked", "draw", "expected"),
    [
        # Chance decides, as it was said.
        ((), 0.5, (["cache_clear", "timeout_increase", "pool_increase"], 0.95, False, False)),
        ((), 0.0, (["timeout_increase", "cache_clear", "pool_increase"], 0.05, True, False)),
        (("pool_increase",), 0.0, (["timeout_increase", "cache_clear", "pool_increase"], 0.05, True, False)),
        # It decides the order of the last two, and the policy has not begun like this.
        (
            ("cache_clear", "timeout_increase"),
            0.5,
            (["pool_increase", "cache_clear", "timeout_increase"], 0.95, False, True),
        ),
        # Whatever was drawn comes to the same.
        (("timeout_increase",), 0.5, (["cache_clear", "pool_increase", "timeout_increase"], 1.0, False, True)),
        (("timeout_increase",), 0.0, (["cache_clear", "pool_increase", "timeout_increase"], 1.0, False, True)),
        (
            ("timeout_increase", "pool_increase"),
            0.0,
            (["cache_clear", "timeout_increase", "pool_increase"], 1.0, False, False),
        ),
    ],
)
def test_what_is_logged_is_the_probability_of_the_order_that_is_tried(
    asked: tuple[str, ...], draw: float, expected: tuple[object, ...]
) -> None:
    found = arranged(explored(draw), last(*asked))
    assert told(found) == expected
    if expected[1] == 1.0:
        assert {one.propensity for one in found.tried} == {1.0}
