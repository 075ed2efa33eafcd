"""Circuits, fallbacks and throttles on the real thing: gunicorn with two workers, a whole service, a real peer."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from upright.adapters import default_project
from upright.adapters.engines import EmbeddedPostgres
from upright.adapters.engines.ports import free_port
from upright.testing.service import RunningService, running_service

HERE = Path(__file__).parent
RUNBOOKS = {
    "connection-error": """
name: connection-error
matches: [ConnectionError, urllib.error.URLError]
order: fixed
cooldown_s: 0
steps:
  - strategy: circuit_break
    parameters: {failure_threshold: 3, timeout_seconds: 8, half_open_requests: 1}
  - strategy: fallback
    parameters: {fallback_service: laravel, fallback_mode: degraded}
""",
    "overload": """
name: overload
matches: [OverloadedError]
cooldown_s: 0
steps:
  - strategy: request_throttle
    parameters: {requests_per_minute: 600, burst_size: 4}
""",
}


class Peer:
    """What the site calls: an HTTP server that can be taken down, and counts what reaches it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.calls = 0
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        if self._server is not None:
            return
        peer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                peer.calls += 1
                self.send_response(200)
                self.send_header("Content-Length", "5")
                self.end_headers()
                self.wfile.write(b"fresh")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


class Site:
    def __init__(self, url: str, peer: Peer, database_url: str, service: RunningService) -> None:
        self.url, self.peer = url, peer
        self._database_url, self._service = database_url, service

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=20, headers={"accept": "application/json"})

    def connected(self) -> int:
        """Processes of the site that the service knows."""
        return self._asked("SELECT count(*) FROM upright.instance WHERE service = 'traffic' AND gone_at IS NULL")[0][0]

    def actions(self, strategy: str) -> list[tuple[str, str]]:
        """Verdict and reason of each action, oldest first."""
        return self._asked(
            "SELECT verdict, reason FROM upright.action WHERE strategy = %s ORDER BY recorded_at", strategy
        )

    def in_force(self) -> int:
        return self._asked(
            "SELECT count(*) FROM upright.directive WHERE withdrawn_at IS NULL AND superseded_at IS NULL"
            " AND expires_at > clock_timestamp()"
        )[0][0]

    def rows(self, error_id: str) -> list[Any]:
        with psycopg.connect(self._database_url) as connection:
            return connection.execute(
                "SELECT context->>'recovery_success', context->>'recovery_strategy' FROM error_logging_errorlog"
                " WHERE error_id = %s",
                [error_id],
            ).fetchall()

    def _asked(self, query: Any, *values: Any) -> list[Any]:
        with psycopg.connect(self._service.database_url) as connection:
            return connection.execute(query, values).fetchall()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    project = tmp_path_factory.mktemp("traffic") / "project"
    default_project.make(project)
    for name, text in RUNBOOKS.items():
        (project / "runbooks" / f"{name}.yaml").write_text(text)
    with running_service(project) as running:
        yield running


@contextmanager
def served(environment: dict[str, str], port: int, log: Path) -> Iterator[None]:
    command = [
        sys.executable, "-m", "gunicorn", "--workers", "2", "--threads", "8", "--bind", f"127.0.0.1:{port}",
        "django.core.wsgi:get_wsgi_application()",
    ]  # fmt: skip
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as server:
        try:
            yield
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def site(
    service: RunningService, postgres_server: EmbeddedPostgres, redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:  # fmt: skip
    place, peer, port = tmp_path_factory.mktemp("site"), Peer(), free_port()
    database_url = postgres_server.ensure_database("traffic")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("UPRIGHT_", "PREFECT_"))}
    environment = {
        **inherited,
        "PYTHONPATH": os.pathsep.join([str(HERE / "traffic_site"), *(one for one in sys.path if one)]),
        "DJANGO_SETTINGS_MODULE": "site_under_load",
        "SITE_DATABASE_URL": database_url,
        "SITE_DATABASE_HOST": str(postgres_server.socket_dir),
        "SITE_REDIS_URL": redis_url,
        "SITE_UPRIGHT_URL": service.url,
        "SITE_UPRIGHT_SECRET": service.secret,
        "SITE_SPOOL_DIR": str(place / "spool"),
        "SITE_PEER_PORT": str(peer.port),
    }
    subprocess.run([sys.executable, "-m", "django", "migrate", "-v0"], env=environment, check=True, timeout=60)
    peer.start()
    with served(environment, port, place / "gunicorn.log"):
        made = Site(f"http://127.0.0.1:{port}", peer, database_url, service)
        eventually(lambda: answers(made))
        eventually(lambda: answers(made) and made.connected() == 2)
        yield made
    peer.stop()


@pytest.fixture(autouse=True)
def mended(site: Site) -> Iterator[None]:
    yield
    site.peer.start()


def answers(site: Site) -> bool:
    try:
        return site.get("/prices/").status_code == 200
    except httpx.HTTPError:
        return False


def eventually(look: Callable[[], Any], timeout_s: float = 40) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)
    return found


def kind(response: httpx.Response) -> str:
    return "fine" if response.status_code == 200 else response.json()["error"]["type"]


def kinds(site: Site, path: str, count: int = 30) -> set[str]:
    return {kind(site.get(path)) for _ in range(count)}


def test_a_circuit_opens_in_every_process_and_closes_once_the_peer_works(site: Site) -> None:
    site.peer.stop()
    for _ in range(2):
        assert site.get("/pay/").json()["recovery"]["success"] is False
    assert [verdict for verdict, _ in site.actions("circuit_break")] == ["skipped", "skipped"]
    with concurrent.futures.ThreadPoolExecutor(1) as caller:
        third = caller.submit(site.get, "/pay/")
        eventually(site.in_force)  # so that it is this one which opens the recovery
        eventually(lambda: kinds(site, "/pay/") == {"CircuitOpen"})
        site.peer.start()
        called = site.peer.calls
        assert kinds(site, "/pay/", 5) == {"CircuitOpen"}
        assert site.peer.calls == called
        report = third.result().json()["recovery"]
    assert (report["success"], report["status"]) == (False, "pending"), "it is open for longer than the caller waits"
    eventually(lambda: kind(site.get("/pay/")) == "fine")
    recovered = eventually(lambda: [one for one in site.actions("circuit_break") if one[0] == "recovered"])
    assert "let through to try it" in recovered[-1][1]
    eventually(lambda: site.in_force() == 0)
    eventually(lambda: kinds(site, "/pay/") == {"fine"})
    error_id = third.result().json()["error"]["error_id"]
    assert eventually(lambda: [row for row in site.rows(error_id) if row[0] == "true"]) == [("true", "circuit_break")]


def test_a_circuit_whose_peer_stays_down_is_no_repair_and_is_taken_back(site: Site) -> None:
    site.peer.stop()
    before = len(site.actions("circuit_break"))
    seen: list[str] = []

    def told() -> list[Any]:
        seen.append(kind(site.get("/pay/")))
        return [one for one in site.actions("circuit_break")[before:] if one[0] == "not_recovered"]

    [(_, reason), *_] = eventually(told)
    assert "the change was withdrawn" in reason
    assert "CircuitOpen" in seen
    assert not [one for one in site.actions("circuit_break")[before:] if one[0] == "recovered"]


def test_a_route_is_served_from_its_last_good_response(site: Site) -> None:
    assert site.get("/prices/").content == b"fresh"
    site.peer.stop()
    failed = site.get("/prices/")
    report = failed.json()["recovery"]
    assert (report["success"], report["message"]) == (True, "Recovery successful: Fallback")
    assert "degraded; last-good" in report["actions"][-1]["reason"]
    eventually(lambda: {site.get("/prices/").headers.get("X-Upright-Fallback") for _ in range(20)} == {FALLBACK})
    assert site.get("/prices/").content == b"fresh"


FALLBACK = "degraded; last-good"


def test_an_overloaded_view_works_again_for_those_who_are_let_through(site: Site) -> None:
    stop = threading.Event()
    outcomes: list[tuple[float, int, str]] = []

    def client() -> None:
        while not stop.is_set():
            response = site.get("/busy/")
            outcomes.append((time.monotonic(), response.status_code, kind(response)))
            stop.wait(0.05)

    with concurrent.futures.ThreadPoolExecutor(14) as crowd:
        running = [crowd.submit(client) for _ in range(14)]
        try:
            eventually(lambda: [one for one in site.actions("request_throttle") if one[0] == "recovered"])
            since = time.monotonic()
            eventually(lambda: len([one for one in list(outcomes) if one[0] > since + 1]) > 100)
        finally:
            stop.set()
        for one in running:
            one.result()
    later = [what for at, _, what in outcomes if at > since + 1]
    assert "OverloadedError" in [what for _, _, what in outcomes]
    assert set(later) == {"fine", "TooManyRequests"}
