"""A sample of the faults, on the whole stack. `make faults` plays all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from upright.services.strategies import STRATEGIES

from .catalogue import catalogue
from .making import MAKING
from .stage import Stage
from .trial import run

TYPES = (
    "DatabaseError", "TimeoutError", "MemoryError", "ConnectionError", "ValidationError", "AuthenticationError",
    "APIError", "ServiceUnavailableError",
)  # fmt: skip
SAMPLE = (
    "peer-resets-twice", "report-outgrows-its-timeout", "corrupt-redis-entry", "search-backend-is-down",
    "post-without-key-is-reset", "invalid-signup", "plain-bug",
)  # fmt: skip
FAULTS = {one.name: one for one in catalogue()}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("f"))
    try:
        made.open()
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("name", SAMPLE)
def test_what_is_said_of_a_fault_is_true(stage: Stage, name: str) -> None:
    outcome = run(stage, FAULTS[name])
    assert outcome.problems == []
    assert not outcome.wrong
    assert outcome.left == []
    assert outcome.verdict in outcome.fault.verdict, outcome.reason
    assert outcome.strategy == outcome.fault.strategy


def test_the_catalogue_covers_every_strategy_and_error_type() -> None:
    assert {one.replace("-", "_") for one in FAULTS} == {one.replace("-", "_") for one in MAKING}
    repairable = [one for one in FAULTS.values() if one.repairable]
    assert (len(FAULTS) >= 40, len(repairable) >= 30) == (True, True)
    by_strategy = Counter(one.strategy for one in repairable)
    assert {name: by_strategy[name] >= 3 for name in STRATEGIES} == dict.fromkeys(STRATEGIES, True)
    by_type = Counter(one.type for one in FAULTS.values())
    assert {name: by_type[name] >= 3 for name in TYPES} == dict.fromkeys(TYPES, True)
