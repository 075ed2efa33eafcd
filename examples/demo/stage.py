"""The whole stack, with a second instance of the shop that has recovery switched off."""

from __future__ import annotations

import mailbox
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
import psycopg
import redis
from psycopg.rows import dict_row
from rich.console import Console

from upright.adapters.engines import free_port
from upright.adapters.stack import Layout, Ports, Stack, build
from upright.adapters.stack.shop import ShopAddresses, shop_server
from upright.cli.board import Board

ROOT = Path(__file__).resolve().parents[2]
SHOP = ROOT / "examples" / "shop"
UNPROTECTED = "unprotected"
PATIENCE_S = 20.0
Found = TypeVar("Found")


def eventually(look: Callable[[], Found], timeout_s: float = PATIENCE_S) -> Found:
    """Looks until what it finds is true, and gives the last thing found."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


@dataclass
class Stage:
    layout: Layout
    shop: ShopAddresses
    unprotected: ShopAddresses
    http: httpx.Client

    def ask(self, who: ShopAddresses, path: str) -> tuple[int, dict[str, Any]]:
        answer = self.http.get(who.url + path, headers={"Accept": "application/json"})
        return answer.status_code, answer.json()

    def recovery_of(self, error_id: str) -> dict[str, Any] | None:
        """The recovery that answers an error, as the service's own database has it, once it is final."""
        rows = self.service(
            """SELECT r.id, r.status, r.message, r.runbook, r.flow_run_id FROM upright.error e
               JOIN upright.recovery r ON r.id = e.recovery_id
               WHERE e.id = %s AND r.status NOT IN ('queued', 'running')""",
            error_id,
        )
        return rows[0] if rows else None

    def actions_of(self, recovery_id: UUID) -> list[dict[str, Any]]:
        return self.service(
            "SELECT * FROM upright.action WHERE recovery_id = %s ORDER BY position",
            recovery_id,
        )

    def service(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Rows of the service's database."""
        return _rows(self.layout.database_url, query, values)

    def shop_rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Rows of the shop's database."""
        return _rows(self.shop.database_url, query, values)

    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.shop.engines.redis.url())

    def mails(self) -> list[Message]:
        place = self.shop.engines.mailbox
        return list(mailbox.Maildir(place, create=False)) if place.is_dir() else []

    def flow_run(self, flow_run_id: UUID) -> dict[str, Any]:
        return self.http.get(f"{self.layout.prefect_api_url}/flow_runs/{flow_run_id}").raise_for_status().json()

    def task_runs(self, flow_run_id: UUID) -> list[dict[str, Any]]:
        chosen = {"flow_runs": {"id": {"any_": [str(flow_run_id)]}}}
        answer = self.http.post(f"{self.layout.prefect_api_url}/task_runs/filter", json=chosen)
        return answer.raise_for_status().json()

    def deployment(self, deployment_id: str) -> dict[str, Any]:
        return self.http.get(f"{self.layout.prefect_api_url}/deployments/{deployment_id}").raise_for_status().json()


@contextmanager
def staged(place: Path, console: Console) -> Generator[Stage]:
    """Up when the block begins, gone when it ends."""
    layout = build(place, ROOT, ports=Ports.any(), shop_dir=SHOP, durable=False)
    if layout.shop is None:
        raise AssertionError("laid out with a shop")
    unprotected = ShopAddresses(layout.shop.engines, free_port())
    without = {"UPRIGHT_ENABLED": "0", "SHOP_CACHE_PREFIX": UNPROTECTED, "UPRIGHT_SERVICE": UNPROTECTED}
    layout.parts.append(
        shop_server(
            "Unprotected shop",
            SHOP,
            layout.shop.engines,
            unprotected.port,
            environment=layout.for_applications() | without,
        )
    )
    details = {
        "Prefect server": layout.prefect_url,
        "Upright service": layout.service_url,
        "Shop": layout.shop.url,
        "Unprotected shop": f"{unprotected.url}  recovery is off",
    }
    board = Board(console, [part.name for part in layout.parts], details)
    stack = Stack(layout.parts, board.changed)
    with board:
        stack.start()
    try:
        with httpx.Client(timeout=30, trust_env=False) as http:
            stage = Stage(layout, layout.shop, unprotected, http)
            _await_agents(stage)
            yield stage
    finally:
        stack.stop()


def _await_agents(stage: Stage) -> None:
    """Both workers have said what their databases bear."""

    def known() -> bool:
        for who in (stage.shop, stage.unprotected):
            for _ in range(4):
                stage.ask(who, "/healthz")
        rows = stage.service("SELECT measurements FROM upright.instance WHERE service = 'shop'")
        return len(rows) >= 2 and all(row["measurements"].get("databases") for row in rows)

    if not eventually(known, 30):
        sys.stderr.write("The shop's workers have not reported to the service.\n")


def _rows(url: str, query: str, values: tuple[object, ...]) -> list[dict[str, Any]]:
    with psycopg.connect(url, row_factory=dict_row) as connection:
        return connection.execute(query, values).fetchall()  # pyright: ignore
