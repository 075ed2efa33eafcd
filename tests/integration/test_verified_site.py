"""Verification on the real thing: gunicorn with two workers, a whole service, a database whose queries outgrow their
timeout, and outgrow it again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from upright.adapters import default_project
from upright.adapters.engines import EmbeddedPostgres
from upright.adapters.engines.ports import free_port
from upright.testing.service import RunningService, running_service

HERE = Path(__file__).parent
WORKERS = 2
SLOW_S, TOO_SLOW_S = 0.6, 5.0
RUNBOOKS = {
    "database-error": """
name: database-error
matches: [DatabaseError, OperationalError]
order: fixed
steps:
  - strategy: timeout_increase
  - strategy: cache_clear
  - strategy: pool_increase
""",
    "orders": """
name: orders
matches: [OrderTooSlow]
cooldown_s: 0
steps:
  - strategy: timeout_increase
verification:
  checks: [{kind: quiet, window_s: 2, min_requests: 5}]
""",
}


class Site:
    def __init__(self, url: str, database_url: str, service: RunningService) -> None:
        self.url = url
        self._database_url, self._service = database_url, service

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=30, headers={"accept": "application/json"})

    def takes(self, seconds: float) -> None:
        with psycopg.connect(self._database_url) as connection:
            connection.execute("DELETE FROM pace")
            connection.execute("INSERT INTO pace VALUES (%s)", [seconds])

    def log(self, error_id: str) -> tuple[str, bool, str]:
        """Status, `resolved` and message of an ErrorLog row."""
        with psycopg.connect(self._database_url) as connection:
            row = connection.execute(
                "SELECT context->'recovery'->>'status', resolved, context->'recovery'->>'message'"
                " FROM error_logging_errorlog WHERE error_id = %s",
                [error_id],
            ).fetchone()
        assert row is not None
        return row

    def asked(self, query: Any, *values: Any) -> list[Any]:
        """Of the service's own database."""
        with psycopg.connect(self._service.database_url) as connection:
            return connection.execute(query, values).fetchall()


def eventually(look: Callable[[], Any], timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    project = tmp_path_factory.mktemp("verified") / "project"
    default_project.make(project)
    for name, text in RUNBOOKS.items():
        (project / "runbooks" / f"{name}.yaml").write_text(text)
    with running_service(project) as running:
        yield running


@contextmanager
def served(environment: dict[str, str], port: int, log: Path) -> Iterator[None]:
    command = [
        sys.executable, "-m", "gunicorn", "--workers", str(WORKERS), "--threads", "8", "--bind", f"127.0.0.1:{port}",
        "django.core.wsgi:get_wsgi_application()",
    ]  # fmt: skip
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as server:
        try:
            yield
        finally:
            server.terminate()
            server.wait(20)


@pytest.fixture
def site(service: RunningService, postgres_server: EmbeddedPostgres, tmp_path: Path) -> Iterator[Site]:
    name = f"verified_{uuid4().hex}"
    database_url = postgres_server.ensure_database(name)
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE pace (seconds double precision)")
    port = free_port()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE / "verified_site"), *(path for path in sys.path if path)]),
        "DJANGO_SETTINGS_MODULE": "verified_site",
        "SITE_DATABASE": name,
        "SITE_DATABASE_HOST": str(postgres_server.socket_dir),
        "SITE_SERVICE": name,
        "SITE_UPRIGHT_URL": service.url,
        "SITE_UPRIGHT_SECRET": service.secret,
        "SITE_SPOOL_DIR": str(tmp_path / "spool"),
    }
    subprocess.run([sys.executable, "-m", "django", "migrate", "-v0"], env=environment, check=True)
    with served(environment, port, tmp_path / "gunicorn.log"):
        found = Site(f"http://127.0.0.1:{port}", database_url, service)
        connected = "SELECT count(*) FROM upright.instance WHERE service = %s AND gone_at IS NULL"
        eventually(lambda: found.asked(connected, name)[0][0] == WORKERS)
        yield found


DIRECTIVES = """
    SELECT "values", instances, withdrawn_at IS NULL FROM upright.directive
    WHERE recovery_id = %s ORDER BY created_at, version"""
HOLDERS = """
    SELECT count(DISTINCT a.instance) FROM upright.acknowledgement a JOIN upright.directive d ON d.id = a.directive_id
    WHERE d.recovery_id = %s AND a.status = 'applied' AND a.version = d.version"""
RECOVERIES = """
    SELECT r.id, r.status, r.relapse_of FROM upright.error e JOIN upright.recovery r ON r.id = e.recovery_id
    WHERE e.id = %s"""


def test_a_change_goes_from_one_process_to_all_and_what_outgrows_it_is_a_relapse(site: Site) -> None:
    site.takes(SLOW_S)
    first = site.get("/report/").json()
    assert first["recovery"]["message"] == "Recovery successful: Timeout Increase"
    error_id = first["error"]["error_id"]
    [(recovery_id, status, _)] = site.asked(RECOVERIES, error_id)
    assert status == "recovered"
    [(values, instances, in_force)] = site.asked(DIRECTIVES, recovery_id)
    assert (values, instances, in_force) == ({"timeout_ms": 1200}, None, True)
    audited = site.asked("SELECT jsonb_array_length(before->'instances') FROM upright.audit"
                         " WHERE what = 'directive.widened'")  # fmt: skip
    assert audited == [(1,)]
    eventually(lambda: site.asked(HOLDERS, recovery_id)[0][0] == WORKERS)
    assert all_workers_serve(site)
    assert site.log(error_id)[:2] == ("recovered", True)

    site.takes(TOO_SLOW_S)
    second = site.get("/report/").json()
    assert second["recovery"]["success"] is False
    actions = {one["strategy"]: one for one in second["recovery"]["actions"]}
    assert actions["timeout_increase"]["verdict"] == "not_recovered"
    [(again, status, relapse_of)] = site.asked(RECOVERIES, second["error"]["error_id"])
    assert (status, relapse_of) == ("not_recovered", recovery_id)
    assert site.asked("SELECT status FROM upright.recovery WHERE id = %s", recovery_id) == [("relapsed",)]
    verdicts = site.asked("SELECT verdict FROM upright.action WHERE recovery_id = %s AND strategy = 'timeout_increase'",
                          recovery_id)  # fmt: skip
    assert verdicts == [("relapsed",)]
    status, resolved, message = eventually(lambda: (row := site.log(error_id))[0] == "relapsed" and row)
    assert (status, resolved) == ("relapsed", False)
    assert message.startswith("Relapsed: the error came back")
    # Its change was tried in one process, and that one has the former value back.
    trial, restored = site.asked(DIRECTIVES, again)
    assert len(trial[1]) == 1
    assert (restored[0], restored[2]) == ({"timeout_ms": 1200}, True)
    site.takes(SLOW_S)
    assert all_workers_serve(site)


def all_workers_serve(site: Site) -> bool:
    """Each has served the report, and none has failed."""
    pids: set[str] = set()

    def another() -> bool:
        answer = site.get("/report/")
        assert answer.status_code == 200, answer.text
        pids.add(answer.text)
        return len(pids) == WORKERS

    return eventually(another)


def test_silence_under_traffic_verifies_what_nobody_can_do_again(site: Site) -> None:
    """Orders are no GET: nothing but their traffic can show that they work again."""
    site.takes(SLOW_S)
    stop = threading.Event()

    def crowd() -> None:
        with httpx.Client(timeout=30, headers={"accept": "application/json"}) as client:
            while not stop.is_set():
                client.post(f"{site.url}/order/")

    clients = [threading.Thread(target=crowd) for _ in range(8)]
    for one in clients:
        one.start()
    try:
        recovered = eventually(
            lambda: site.asked(
                "SELECT a.checks, a.reason FROM upright.action a JOIN upright.recovery r ON r.id = a.recovery_id"
                " WHERE r.runbook = 'orders' AND r.status = 'recovered' AND a.verdict = 'recovered'"
            )
        )
    finally:
        stop.set()
        for one in clients:
            one.join(30)
    [(checks, reason)] = recovered
    [check] = checks
    assert (check["before"]["outcome"], check["after"]["outcome"]) == ("failed", "passed")
    assert "requests of the route succeeded in 2 s, and none failed in the same way" in reason
