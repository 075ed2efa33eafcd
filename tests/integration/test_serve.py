"""The whole service in a process of its own: an error in, a verified answer out, a clean end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from standardwebhooks.webhooks import Webhook

from upright.adapters.engines import EmbeddedPrefect
from upright.domain.event import Waiter
from upright.testing.events import CANCELLED_FOR_TIMEOUT, DJANGO_OPERATIONAL_ERROR, error_event
from upright.testing.intake import SECRET

PROJECT = Path(__file__).parents[2]

SERVICE = """
    import asyncio, sys
    from pathlib import Path
    from upright import bootstrap
    from upright.config import Settings

    settings = Settings(project=Path(sys.argv[1]), port=int(sys.argv[2]))
    asyncio.run(bootstrap.serve(settings, lambda address: print(address, flush=True)))
    print("stopped", flush=True)
"""


async def start(database_url: str, port: int = 0) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(SERVICE), str(PROJECT), str(port)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONPATH": str(PROJECT / "src"),
            "UPRIGHT_DATABASE_URL": database_url,
            "UPRIGHT_SECRETS": SECRET,
        },
    )


@pytest.fixture
async def service(
    fresh_postgres_url: str, prefect_server: EmbeddedPrefect
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await start(fresh_postgres_url)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            address = (await process.stdout.readline()).decode().strip()
        yield process, address
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def post(client: httpx.AsyncClient, path: str, body: str) -> dict[str, Any]:
    delivery, now = str(uuid4()), datetime.now(UTC)
    headers = {
        "webhook-id": delivery,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign(delivery, now, body),
    }
    answer = await client.post(path, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_error_goes_in_and_a_verified_answer_comes_out(
    service: tuple[asyncio.subprocess.Process, str],
) -> None:
    process, address = service
    event = error_event(DJANGO_OPERATIONAL_ERROR, measurements=CANCELLED_FOR_TIMEOUT)
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
        assert (await client.get("/readyz")).json() == {"status": "ok", "parts": {"postgresql": "ok", "prefect": "ok"}}
        answer = await post(client, "/v1/errors?wait_ms=20000", event.model_dump_json())
        command = answer["command"]
        assert (command["kind"], command["verify"]) == ("apply", True)
        [directive] = command["directives"]
        assert (directive["strategy"], directive["values"]) == ("timeout_increase", {"timeout_ms": 1200})
        done = {"directive_id": directive["id"], "version": directive["version"], "status": "applied"}
        result = {
            "command_id": command["id"],
            "status": "done",
            "acknowledgements": [done],
            "evidence": {"kind": "replay", "outcome": "passed", "status_code": 200},
        }
        body = json.dumps({"schema_version": 1, "remaining_ms": 15_000, "results": [result]})
        answer = await post(client, f"/v1/errors/{event.error_id}/results?wait_ms=15000", body)
    recovery = answer["recovery"]
    assert (recovery["attempted"], recovery["success"], recovery["status"]) == (True, True, "recovered")
    assert recovery["message"] == "Recovery successful: Timeout Increase"
    assert [(one["strategy"], one["success"]) for one in recovery["actions"]] == [
        ("timeout_increase", True),
        ("pool_increase", False),
        ("cache_clear", False),
    ]
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        assert process.stdout is not None
        assert (await process.stdout.read()).decode().strip() == "stopped"
        assert await process.wait() == 0


async def test_a_restart_in_the_middle_of_a_recovery_is_no_verdict(
    service: tuple[asyncio.subprocess.Process, str], fresh_postgres_url: str
) -> None:
    process, address = service
    event = error_event(DJANGO_OPERATIONAL_ERROR, measurements=CANCELLED_FOR_TIMEOUT)
    event = event.model_copy(update={"waiter": Waiter(budget_ms=60_000, can=["apply", "replay"])})
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        answer = await post(client, "/v1/errors?wait_ms=20000", event.model_dump_json())
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0
        with psycopg.connect(fresh_postgres_url) as connection:
            found = connection.execute("SELECT status FROM upright.recovery").fetchall()
        assert found == [("running",)]
        second = await start(fresh_postgres_url, httpx.URL(address).port or 0)
        try:
            async with asyncio.timeout(60):
                assert second.stdout is not None
                assert (await second.stdout.readline()).decode().strip() == address
            while command := answer["command"]:
                [directive] = command["directives"]
                done = {"directive_id": directive["id"], "version": directive["version"], "status": "applied"}
                evidence = {"kind": "replay", "outcome": "passed", "status_code": 200}
                result = {"command_id": command["id"], "status": "done", "acknowledgements": [done]}
                results = [{**result, "evidence": evidence}]
                body = json.dumps({"schema_version": 1, "remaining_ms": 30_000, "results": results})
                answer = await post(client, f"/v1/errors/{event.error_id}/results?wait_ms=30000", body)
        finally:
            second.kill()
            await second.wait()
    assert (answer["recovery"]["success"], answer["recovery"]["status"]) == (True, "recovered")


async def test_an_address_that_is_taken_is_told(
    service: tuple[asyncio.subprocess.Process, str], fresh_postgres_url: str
) -> None:
    second = await start(fresh_postgres_url, httpx.URL(service[1]).port or 0)
    async with asyncio.timeout(60):
        _, told = await second.communicate()
    assert second.returncode != 0
    assert "Set UPRIGHT_HOST or UPRIGHT_PORT" in told.decode()
