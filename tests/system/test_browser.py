"""What a person sees: the shop's buttons, and the runs in the Prefect UI."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, expect
from stage import Stage, eventually

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("fault", "strategy"),
    [("report", "timeout_increase"), ("cache", "cache_clear"), ("upstream", "retry"), ("pool", "pool_increase")],
)
def test_a_button_breaks_the_shop_and_the_answer_says_how_it_was_repaired(
    stage: Stage, page: Page, fault: str, strategy: str
) -> None:
    page.goto(stage.shop.url)
    page.click(f"button[data-fault={fault}]")
    headline = page.locator("#headline[data-status]")
    expect(headline).to_have_text("It broke, and was repaired", timeout=30_000)
    expect(headline).to_have_attribute("data-status", "recovered")
    expect(page.locator("#actions")).to_contain_text(f"{strategy}: recovered")
    shown = page.locator("#answer").inner_text()
    answer = json.loads(shown[shown.index("{") :])
    assert answer["recovery"]["success"] is True
    recovery = eventually(lambda: stage.recovery_of(answer["error"]["error_id"]))
    assert recovery
    assert recovery["status"] == "recovered"


def test_a_bug_is_not_called_repaired(stage: Stage, page: Page) -> None:
    page.goto(stage.shop.url)
    page.click("button[data-fault=bug]")
    headline = page.locator("#headline[data-status]")
    expect(headline).to_have_text("It broke, and stays broken", timeout=30_000)
    expect(headline).to_have_attribute("data-status", "not_recovered")


def test_the_prefect_ui_shows_the_run_with_its_tasks(stage: Stage, page: Page) -> None:
    page.goto(stage.shop.url)
    page.click("button[data-fault=bug]")
    expect(page.locator("#headline[data-status]")).to_be_visible(timeout=30_000)
    shown = page.locator("#answer").inner_text()
    error_id = json.loads(shown[shown.index("{") :])["error"]["error_id"]
    recovery = eventually(lambda: stage.recovery_of(error_id))
    assert recovery
    run = stage.flow_run(recovery["flow_run_id"])
    assert eventually(lambda: "score" in {task["name"] for task in stage.task_runs(recovery["flow_run_id"])})
    page.goto(f"{stage.layout.prefect_url}/runs/flow-run/{recovery['flow_run_id']}")
    expect(page.get_by_text(run["name"]).first).to_be_visible(timeout=30_000)
    expect(page.get_by_text("score").first).to_be_visible(timeout=30_000)
    page.goto(f"{stage.layout.prefect_url}/deployments")
    for name in ("api-error", "database-error", "connection-error", "cache-corruption"):
        expect(page.get_by_text(name).first).to_be_visible(timeout=30_000)
