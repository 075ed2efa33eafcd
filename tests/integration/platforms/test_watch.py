"""Errors that nobody raises, with the whole service: two replicas of it, Prefect, and a real gunicorn that hangs."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from upright.adapters import default_project
from upright.adapters.engines import EmbeddedPrefect

from .conftest import Shop, until

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes ...").decode()


class Service:
    """Replicas of the service, each a process of its own, on one database."""

    def __init__(self, directory: Path, database_url: str, prefect_url: str) -> None:
        self.project, self.database_url, self.directory = directory / "project", database_url, directory
        default_project.make(self.project)
        self.replicas: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "UPRIGHT_DATABASE_URL": database_url,
            "PREFECT_API_URL": prefect_url,
            "UPRIGHT_SECRETS": SECRET,
            "UPRIGHT_PORT": "0",
            "UPRIGHT_LEASE_S": "2",
            "PREFECT_HOME": str(directory / "prefect"),
        }

    def configure(self, shop: Shop, **health: Any) -> None:
        rules = {"interval_s": 0.3, "timeout_s": 0.5, "failures": 2, **health}
        (self.project / "platforms.yaml").write_text(
            textwrap.dedent(f"""
            services:
              django:
                platform: gunicorn
                pidfile: {shop.pidfile}
                health_url: {shop.url}
                max_processes: 4
                health: {rules!r}
            """).replace("'", '"')
        )

    def start(self) -> subprocess.Popen[bytes]:
        log = self.directory / f"serve-{len(self.replicas)}.log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "upright.cli", "serve", "--project", str(self.project)]
            process = subprocess.Popen(command, env=self.environment, stdout=output, stderr=output)
        self.replicas.append(process)
        until(lambda: process.poll() is not None or "Serving on" in log.read_text() or "http://" in log.read_text(), 90)
        assert process.poll() is None, log.read_text()
        return process

    def rows(self, query: str) -> list[dict[str, Any]]:
        with psycopg.connect(self.database_url, row_factory=dict_row) as connection:
            return connection.execute(query).fetchall()  # pyright: ignore

    def ended(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM upright.recovery WHERE status NOT IN ('queued', 'running')")


@pytest.fixture
def service(tmp_path: Path, fresh_postgres_url: str, prefect_server: EmbeddedPrefect) -> Iterator[Service]:
    made = Service(tmp_path, fresh_postgres_url, prefect_server.api_url)
    yield made
    for one in made.replicas:
        one.kill()
        one.wait()


def test_hung_workers_are_found_and_replaced_with_nobody_waiting(service: Service, shop: Shop) -> None:
    service.configure(shop)
    service.start()
    service.start()
    old = shop.workers()
    shop.hang(*old)
    until(service.ended, 60)
    errors = service.rows("SELECT * FROM upright.error")
    assert [(one["type"], one["origin"], one["service"]) for one in errors] == [
        ("ServiceUnavailableError", "health", "django")
    ]
    recovery = service.ended()[0]
    actions = {one["strategy"]: one for one in service.rows("SELECT * FROM upright.action")}
    assert recovery["status"] == "recovered", actions
    assert recovery["runbook"] == "service-unavailable-error"
    assert actions["service_restart"]["verdict"] == "recovered"
    assert actions["service_restart"]["evidence"]["kind"] == "health"
    assert not set(old) & set(shop.workers())
    assert shop.answers()
    # It is over, and the next outage is another one.
    until(lambda: service.rows("SELECT * FROM upright.health_watch WHERE failures = 0 AND reports = 0"))
    shop.hang(*shop.workers())
    until(lambda: len(service.ended()) == 2, 60)


def test_an_outage_that_can_not_be_ended_makes_one_incident(service: Service, shop: Shop) -> None:
    service.configure(shop)
    (shop.directory / "sick").touch()
    shop.break_deploy()
    workers = shop.workers()
    service.start()
    until(service.ended, 60)
    before = service.rows("SELECT failures FROM upright.health_watch")[0]["failures"]
    until(lambda: service.rows("SELECT failures FROM upright.health_watch")[0]["failures"] > before + 5)
    assert [one["status"] for one in service.ended()] == ["not_recovered"]
    assert len(service.rows("SELECT * FROM upright.error")) == 1
    reason = service.rows("SELECT reason FROM upright.action WHERE strategy = 'service_restart'")[0]["reason"]
    assert "the application does not load: " in reason
    assert shop.workers() == workers


VICTIM = """
    import asyncio, sys
    from pathlib import Path
    from uuid import uuid4
    from upright.adapters import platforms
    from upright.adapters.store import Database, PostgresStore
    from upright.domain.severity import Severity
    from upright.services.ports import Scaling
    from upright.testing.events import error_event

    async def main():
        store = PostgresStore(await Database.open(sys.argv[1]))
        service = platforms.load(Path(sys.argv[2]))["default", "django"]
        event = error_event(("builtins.TimeoutError",), waits=False)
        accepted = await store.accept("default", "one", event, fingerprint="f" * 32, runbook="timeout-error",
                                      severity=Severity.HIGH, cooldown_s=60, queued=True)
        recovery = await store.bind(accepted.recovery.id, flow_run_id=uuid4(), runner="victim", lease_s=2)
        state = await service.replicas[0].state()
        scaling = Scaling("default", "django", "main", 2, 4, state.incarnation, recovery.id)
        await store.put_scaling(scaling, ttl_s=3, epoch=recovery.epoch)
        await service.replicas[0].scale(4, timeout_s=20)
        print("scaled", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
"""


async def test_what_a_killed_service_had_added_another_one_takes_away(
    service: Service, start: Callable[..., Shop], tmp_path: Path
) -> None:
    shop = await asyncio.to_thread(start)
    service.configure(shop)
    await asyncio.to_thread(service.start)
    script = tmp_path / "victim.py"
    script.write_text(textwrap.dedent(VICTIM))
    victim = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), service.database_url, str(service.project)), stdout=subprocess.PIPE
    )
    assert victim.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert (await victim.stdout.readline()).decode().strip() == "scaled"
        assert len(shop.workers()) == 4
    finally:
        victim.send_signal(signal.SIGKILL)
        await victim.wait()
    await asyncio.to_thread(until, lambda: len(shop.workers()) == 2, 60)
    await asyncio.to_thread(until, lambda: not service.rows("SELECT * FROM upright.scaling"))
    trail = service.rows("SELECT before, after FROM upright.audit WHERE what = 'scaling.reverted'")
    assert [(one["before"]["processes"], one["after"]["processes"]) for one in trail] == [(4, 2)]
