"""Takes the pictures of the docs: `python examples/screenshots.py DIRECTORY`. Starts the whole stack for it."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "examples" / "demo")]

from browser import browser_page  # noqa: E402 - the demo's stage is beside us
from stage import Stage, eventually, staged  # noqa: E402

from upright.cli.signals import interruptible  # noqa: E402

FAULTS = ("report", "cache", "upstream", "bug", "pool")
PICTURED = "report"


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with (
        interruptible(),
        tempfile.TemporaryDirectory(prefix="upright-pictures-", ignore_cleanup_errors=True) as scratch,
        staged(Path(scratch), Console()) as stage,
        browser_page() as page,
    ):
        for fault in FAULTS:
            break_it(page, stage, fault)
            if fault == PICTURED:
                page.screenshot(path=directory / "shop.png", full_page=True)
        prefect_pictures(page, stage, directory)


def break_it(page: Page, stage: Stage, fault: str) -> None:
    """Press a fault's button and wait for what comes of it."""
    page.goto(stage.shop.url)
    page.click(f"button[data-fault={fault}]")
    expect(page.locator("#headline[data-status]")).to_be_visible(timeout=30_000)


def prefect_pictures(page: Page, stage: Stage, directory: Path) -> None:
    """The runs, one run with its tasks, its artifact, and the deployments."""

    def recovered() -> list[dict[str, object]]:
        return stage.service(
            """SELECT r.flow_run_id FROM upright.recovery r JOIN upright.action a ON a.recovery_id = r.id
               WHERE r.status = 'recovered' AND a.strategy = 'timeout_increase' AND a.verdict = 'recovered'"""
        )

    run = eventually(recovered)[0]["flow_run_id"]
    eventually(lambda: len(stage.task_runs(run)) >= 4)
    base = stage.layout.prefect_url
    for name, path, text in (
        ("prefect-runs", "/runs", "in shop"),
        ("prefect-run", f"/runs/flow-run/{run}", "verify timeout_increase"),
        ("prefect-deployments", "/deployments", "database-error"),
    ):
        show(page, base + path, text)
        page.screenshot(path=directory / f"{name}.png")
    artifacts = stage.http.post(
        f"{stage.layout.prefect_api_url}/artifacts/filter",
        json={"artifacts": {"flow_run_id": {"any_": [str(run)]}}},
    ).json()
    show(page, f"{base}/artifacts/artifact/{artifacts[0]['id']}", "timeout_increase")
    page.screenshot(path=directory / "prefect-artifact.png", full_page=True)


def show(page: Page, url: str, text: str) -> None:
    page.goto(url)
    expect(page.get_by_text(text).first).to_be_visible(timeout=30_000)
    page.wait_for_load_state("networkidle")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
