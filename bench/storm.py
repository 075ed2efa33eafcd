"""A burst of 1,000 identical errors from 8 clients, beside the same burst of requests that succeed."""

from __future__ import annotations

import threading
import time

import httpx
import psycopg

from bench.figures import Figure, percentile
from bench.stack import Stack, wait_for

ERRORS = 1000
CLIENTS = 8


def _burst(stack: Stack, path: str) -> tuple[list[float], set[int], list[str]]:
    """The burst, with one client of healthy requests meanwhile: ms of each healthy request, the statuses of the burst,
    its error ids."""
    healthy: list[float] = []
    statuses: set[int] = set()
    ids: list[str] = []
    finished = threading.Event()
    limits = httpx.Limits(max_connections=CLIENTS + 2)

    def visit() -> None:
        with httpx.Client(timeout=30) as client:
            while not finished.is_set():
                began = time.perf_counter()
                response = client.get(f"{stack.patient}/healthy/")
                healthy.append((time.perf_counter() - began) * 1000)
                if response.status_code != 200:
                    raise RuntimeError(f"a healthy request got {response.status_code}")
                finished.wait(0.005)

    def storm() -> None:
        with httpx.Client(timeout=30, limits=limits) as client:
            for _ in range(ERRORS // CLIENTS):
                response = client.get(f"{stack.patient}{path}", headers={"accept": "application/json"})
                statuses.add(response.status_code)
                if response.status_code != 200:
                    ids.append(response.json()["error"]["error_id"])

    visitor = threading.Thread(target=visit)
    stormers = [threading.Thread(target=storm) for _ in range(CLIENTS)]
    visitor.start()
    for thread in stormers:
        thread.start()
    for thread in stormers:
        thread.join()
    finished.set()
    visitor.join()
    return healthy, statuses, ids


def measure(stack: Stack) -> dict[str, Figure]:
    _burst(stack, "/storm/?ok=1")
    quiet, _, _ = _burst(stack, "/storm/?ok=1")
    again, _, _ = _burst(stack, "/storm/?ok=1")
    stormy, _, ids = _burst(stack, "/storm/")

    def logged() -> int:
        with psycopg.connect(stack.patient_database_url) as connection:
            query = "SELECT count(*) FROM error_logging_errorlog WHERE error_id = ANY(%s::uuid[])"
            row = connection.execute(query, [ids]).fetchone()
        return int(row[0]) if row else 0

    def accepted() -> int:
        with psycopg.connect(stack.database_url) as connection:
            row = connection.execute("SELECT count(*) FROM upright.error WHERE id = ANY(%s::uuid[])", [ids]).fetchone()
        return int(row[0]) if row else 0

    wait_for(lambda: logged() == ERRORS and accepted() == ERRORS, "all errors logged and delivered", 120)
    with psycopg.connect(stack.database_url) as connection:
        query = "SELECT count(DISTINCT recovery_id) FROM upright.error WHERE id = ANY(%s::uuid[])"
        row = connection.execute(query, [ids]).fetchone()
    runs = int(row[0]) if row else 0
    base, second, p99 = (percentile(values, 99) for values in (quiet, again, stormy))
    return {
        "storm_errors_lost": Figure(ERRORS - logged(), "errors", None, None, "", "0"),
        "storm_runs": Figure(runs, "runs", None, None, "", "≤ 2"),
        "storm_healthy_p99_ratio": Figure(
            round(p99 / base, 2), "×", 1.0, round(abs(second / base - 1), 2), "the same requests succeeding", "≤ 2"
        ),
        "storm_healthy_p99_ms": Figure(
            round(p99, 2), "ms", round(base, 2), round(abs(second - base), 2), "the same requests succeeding"
        ),
    }
