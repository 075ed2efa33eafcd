"""Nothing that a user can set, write or call is undocumented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from upright.config import Settings
from upright.domain.runbook import AlertRules, Runbook, Step, Verification
from upright.services.strategies import STRATEGIES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_of_the_service_is_documented(name: str) -> None:
    assert f"`UPRIGHT_{name.upper()}`" in (DOCS / "settings.md").read_text()


def test_every_documented_variable_exists() -> None:
    service = (DOCS / "settings.md").read_text().partition("## Service")[2]
    documented = set(re.findall(r"`UPRIGHT_([A-Z_]+)`", service))
    assert documented == {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("model", [Runbook, Step, Verification, AlertRules])
def test_every_field_of_a_runbook_is_documented(model: type) -> None:
    text = (DOCS / "runbooks.md").read_text()
    assert [name for name in model.model_fields if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_is_documented(name: str) -> None:
    strategy = STRATEGIES[name]
    assert name in (DOCS / "strategies" / "README.md").read_text()
    if strategy.available:
        page = (DOCS / "strategies" / f"{name}.md").read_text()
        assert [field for field in strategy.parameters.model_fields if f"`{field}`" not in page] == []
