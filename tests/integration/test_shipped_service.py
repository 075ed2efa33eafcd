"""The service that the test helper starts, and the commands that look into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from standardwebhooks import Webhook

from upright.testing.fixtures import upright_service
from upright.testing.service import RunningService

__all__ = ["upright_service"]

ROOT = Path(__file__).resolve().parents[2]
FINAL = {"recovered", "not_recovered", "unknown", "cancelled"}


def cli(service: RunningService, *arguments: str) -> Any:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("UPRIGHT_", "PREFECT_"))}
    environment = {
        **inherited,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "UPRIGHT_DATABASE_URL": service.database_url,
        "UPRIGHT_SECRETS": service.secret,
        "UPRIGHT_PORT": service.url.rpartition(":")[2],
        "PREFECT_API_URL": service.prefect_api_url,
    }
    done = subprocess.run(
        [sys.executable, "-m", "upright.cli", *arguments, "--json"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def eventually(look: Callable[[], Any], timeout_s: float = 30) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.1)
    return found


def report(service: RunningService) -> str:
    """Post an error as an application does; its id."""
    error_id = str(uuid4())
    event = {
        "schema_version": 1,
        "error_id": error_id,
        "service": "shop",
        "occurred_at": datetime.now(UTC).isoformat(),
        "origin": "block",
        "error": {"type": "KeyError", "message": "'IS'", "classes": [["builtins.KeyError", "builtins.LookupError"]]},
    }
    body = json.dumps(event)
    now = datetime.now(UTC)
    headers = {
        "content-type": "application/json",
        "webhook-id": error_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(service.secret).sign(error_id, now, body),
    }
    answer = httpx.post(f"{service.url}/v1/errors", content=body, headers=headers)
    assert answer.status_code in (200, 202), answer.text
    return error_id


@pytest.fixture
def error_id(upright_service: RunningService) -> str:
    return report(upright_service)


def recovery(service: RunningService, error_id: str) -> dict[str, Any] | None:
    found = cli(service, "errors", "show", error_id)["recovery"]
    return found if found and found["status"] in FINAL else None


def test_an_error_is_listed_shown_and_run_again(upright_service: RunningService, error_id: str) -> None:
    first = eventually(lambda: recovery(upright_service, error_id))
    listed = cli(upright_service, "errors", "list", "--service", "shop")
    assert error_id in [one["error_id"] for one in listed]

    again = cli(upright_service, "errors", "rerun", error_id)
    assert again["runbook"] == first["runbook"]
    run = f"{upright_service.prefect_api_url}/flow_runs/{again['flow_run_id']}"
    eventually(lambda: httpx.get(run).json()["state_type"] in ("COMPLETED", "FAILED"))
    second = eventually(lambda: recovery(upright_service, error_id))
    assert second["flow_run_id"] == again["flow_run_id"]
    assert second["id"] != first["id"]


def test_doctor_finds_nothing_wrong(upright_service: RunningService) -> None:
    findings = {one["check"]: one["status"] for one in cli(upright_service, "doctor")}
    assert findings == {
        "Project": "ok",
        "Secrets": "ok",
        "Database": "ok",
        "Prefect": "ok",
        "Platforms": "warning",
        "SMTP": "warning",
        "Alerts": "ok",
        "Service": "ok",
    }
