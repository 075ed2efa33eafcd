"""The commands, as they are typed."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from upright.adapters.store import PostgresStore
from upright.cli.context import announced
from upright.cli.doctor import secret_problem
from upright.domain.event import ErrorDetail
from upright.domain.verdict import Checked, Evidence, Status, Verdict
from upright.services.ports import ActionRecord
from upright.testing.intake import SECRET, a_running_recovery, accept, an_event

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("UPRIGHT_", "PREFECT_"))}
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, "-m", "upright.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**inherited, "PYTHONPATH": paths, "COLUMNS": "200", **environment},
        timeout=120,
        check=False,
    )


def test_init_makes_a_project_that_is_valid(tmp_path: Path) -> None:
    made = run("init", str(tmp_path / "ops"))
    assert made.returncode == 0, made.stderr
    contents = {"flows", "runbooks", "models", "prefect.yaml", "platforms.yaml"}
    assert {path.name for path in (tmp_path / "ops").iterdir()} == contents
    checked = run("runbooks", "validate", "--json", "--project", str(tmp_path / "ops"))
    assert json.loads(checked.stdout)["valid"] is True


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "runbooks").mkdir()
    refused = run("init", str(tmp_path))
    assert refused.returncode == 1
    assert "has runbooks already" in refused.stderr
    assert not (tmp_path / "flows").exists()


def test_runbooks_are_listed_with_their_strategies() -> None:
    listed = json.loads(run("runbooks", "list", "--json").stdout)
    database = next(one for one in listed if one["name"] == "database-error")
    assert [step["strategy"] for step in database["steps"]] == ["pool_increase", "timeout_increase", "cache_clear"]


def test_problems_of_runbooks_are_told_with_file_and_line(tmp_path: Path) -> None:
    run("init", str(tmp_path / "ops"))
    path = tmp_path / "ops" / "runbooks" / "database-error.yaml"
    path.write_text(path.read_text().replace("pool_increase", "pool_increas"))
    checked = run("runbooks", "validate", cwd=tmp_path / "ops")
    assert checked.returncode == 1
    assert "database-error.yaml:" in checked.stderr
    assert "pool_increas" in checked.stderr


def test_doctor_says_what_to_do(postgres_url: str, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = closed.getsockname()[1]
    told = run(
        "doctor",
        "--json",
        UPRIGHT_DATABASE_URL=postgres_url,
        UPRIGHT_DATA_DIR=str(tmp_path),
        UPRIGHT_SECRETS="whsec_c2hvcnQ=",
        UPRIGHT_SMTP_URL=f"smtp://127.0.0.1:{dead}",
        PREFECT_API_URL=f"http://127.0.0.1:{dead}/api",
    )
    assert told.returncode == 1
    findings = {one["check"]: one for one in json.loads(told.stdout)}
    assert {name: one["status"] for name, one in findings.items()} == {
        "Project": "ok",
        "Platforms": "warning",
        "Secrets": "failed",
        "Database": "ok",
        "Prefect": "failed",
        "SMTP": "failed",
        "Alerts": "warning",
        "Service": "warning",
    }
    assert "5 bytes" in findings["Secrets"]["detail"]
    assert all(one["advice"] for one in findings.values() if one["status"] != "ok")


def test_doctor_finds_the_stack_that_runs_here(tmp_path: Path) -> None:
    """Its address and its secret are those of `upright up`, not the defaults."""
    with announced(tmp_path, {"service_url": "http://127.0.0.1:9", "secret": SECRET}):
        told = run("doctor", "--json", UPRIGHT_DATA_DIR=str(tmp_path))
    findings = {one["check"]: one for one in json.loads(told.stdout)}
    assert findings["Secrets"]["status"] == "ok"
    assert "http://127.0.0.1:9" in findings["Service"]["detail"]


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        ("secret", "does not begin with whsec_"),
        ("whsec_???", "is not base64 after whsec_"),
        ("whsec_" + base64.b64encode(b"x" * 23).decode(), "has 23 bytes, fewer than 24"),
        ("whsec_" + base64.b64encode(b"x" * 24).decode(), None),
        ("whsec_" + base64.b64encode(b"x" * 25).decode().rstrip("="), None),
        ("whsec_\u00e9", "is not base64 after whsec_"),
    ],
)
def test_secrets_are_judged(secret: str, problem: str | None) -> None:
    assert secret_problem(secret) == problem


def test_a_wrong_setting_is_told_by_its_name() -> None:
    refused = run("runbooks", "list", UPRIGHT_PORT="many")
    assert refused.returncode == 2
    assert "UPRIGHT_PORT" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        (("runbooks", "list"), {"UPRIGHT_TENANTS": "s3cret"}, "UPRIGHT_TENANTS"),
        (("serve", "--port", "99999"), {}, "--port"),
        (("up", "--prefect-port", "-3"), {}, "--prefect-port"),
        (("up",), {"UPRIGHT_SHOP_PORT": "65536"}, "UPRIGHT_SHOP_PORT"),
        (("errors", "list", "--status", "repaired"), {}, "not_recovered"),
    ],
)
def test_what_is_used_wrongly_is_told_without_a_traceback(
    arguments: tuple[str, ...], environment: dict[str, str], told: str, tmp_path: Path
) -> None:
    refused = run(*arguments, UPRIGHT_DATA_DIR=str(tmp_path), **environment)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "s3cret" not in refused.stderr


def test_doctor_shows_no_password(tmp_path: Path) -> None:
    told = run("doctor", UPRIGHT_DATABASE_URL="postgres:s3cret@host/name", UPRIGHT_DATA_DIR=str(tmp_path))
    assert told.returncode == 1
    assert "postgresql://user@host/name" in told.stdout
    assert "s3cret" not in told.stdout + told.stderr


def test_an_unknown_error_is_told(database_url: str, tmp_path: Path) -> None:
    nothing = "00000000-0000-4000-8000-000000000000"
    refused = run("errors", "show", nothing, UPRIGHT_DATABASE_URL=database_url, UPRIGHT_DATA_DIR=str(tmp_path))
    assert refused.returncode == 1
    assert refused.stderr == f"Error: There is no error {nothing}.\n"


async def test_what_an_error_says_is_shown_as_it_is(store: PostgresStore, database_url: str, tmp_path: Path) -> None:
    detail = ErrorDetail(type="Broken[/]", message="[/] [red]no markup", classes=[["shop.Broken"]])
    error_id = str((await accept(store, an_event(error=detail))).error_id)
    for arguments in (("list",), ("show", error_id)):
        shown = await asyncio.to_thread(
            run, "errors", *arguments, UPRIGHT_DATABASE_URL=database_url, UPRIGHT_DATA_DIR=str(tmp_path)
        )
        assert shown.returncode == 0, shown.stderr
        assert "Broken[/]" in shown.stdout


async def test_what_verified_an_error_and_how_it_came_back_is_shown(
    store: PostgresStore, database_url: str, tmp_path: Path
) -> None:
    recovery = await a_running_recovery(store)
    failed, passed = (Evidence(kind="http", outcome=one, detail=f"it {one}") for one in ("failed", "passed"))
    checks = (Checked(name="http http://shop.example/", before=failed, after=passed),)
    action = ActionRecord(recovery.id, 0, "cache_clear", Verdict.RECOVERED, reason="it works", checks=checks)
    await store.record_action(action, epoch=recovery.epoch)
    await store.conclude(recovery.id, epoch=recovery.epoch, status=Status.RECOVERED, message="done", explanation={})
    await accept(store)
    environment = {"UPRIGHT_DATABASE_URL": database_url, "UPRIGHT_DATA_DIR": str(tmp_path)}
    shown = await asyncio.to_thread(run, "errors", "show", str(recovery.error_id), **environment)
    assert shown.returncode == 0, shown.stderr
    assert "relapsed. done\nIt did not last: the error came back 0 s after it." in shown.stdout
    line = next(one for one in shown.stdout.splitlines() if "http://shop.example/" in one)
    assert " ".join(line.split()) == "cache_clear http http://shop.example/ failed it failed passed it passed"
    as_json = await asyncio.to_thread(run, "errors", "show", str(recovery.error_id), "--json", **environment)
    assert json.loads(as_json.stdout)["recovery"]["actions"][0]["checks"][0]["before"]["outcome"] == "failed"


def test_a_database_without_tables_is_told(fresh_postgres_url: str, tmp_path: Path) -> None:
    refused = run("errors", "list", UPRIGHT_DATABASE_URL=fresh_postgres_url, UPRIGHT_DATA_DIR=str(tmp_path))
    assert refused.returncode == 1
    assert "`upright serve` brings them up to date" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("api", ["", "http://127.0.0.1:1/api"])
async def test_a_rerun_without_prefect_is_told(
    store: PostgresStore, database_url: str, tmp_path: Path, api: str
) -> None:
    error_id = str((await accept(store)).error_id)
    environment = {"UPRIGHT_DATABASE_URL": database_url, "UPRIGHT_DATA_DIR": str(tmp_path)}
    environment |= {"PREFECT_HOME": str(tmp_path), **({"PREFECT_API_URL": api} if api else {})}
    refused = await asyncio.to_thread(run, "errors", "rerun", error_id, **environment)
    assert refused.returncode == 1
    assert ("does not answer" if api else "PREFECT_API_URL is not set") in refused.stderr
    assert "Traceback" not in refused.stderr


def test_trust_is_set_within_what_the_files_allow(database_url: str, tmp_path: Path) -> None:
    run("init", str(tmp_path / "ops"))
    path = tmp_path / "ops" / "runbooks" / "guardrails.yaml"
    path.write_text(path.read_text().replace("retry: {", "retry: {trust: approve, "))
    where = {"UPRIGHT_DATABASE_URL": database_url, "UPRIGHT_PROJECT": str(tmp_path / "ops")}

    def level(strategy: str) -> str:
        shown = json.loads(run("trust", "status", "--json", **where).stdout)
        [one] = [one for one in shown if (one["runbook"], one["strategy"]) == ("api-error", strategy)]
        return one["level"]

    assert (level("retry"), level("timeout_increase")) == ("approve", "auto")
    assert run("trust", "set", "api-error", "shadow", "--by", "ann", **where).returncode == 0
    assert (level("retry"), level("timeout_increase")) == ("shadow", "shadow")
    assert run("trust", "set", "api-error", "auto", "--by", "ann", **where).returncode == 0
    more = run("trust", "set", "api-error/retry", "auto", "--by", "ann", "--why", "it works", **where)
    assert "allows no more than approve" in more.stdout
    assert (level("retry"), level("timeout_increase")) == ("approve", "auto")
    for wrong in ("api-error/pool_increase", "nothing"):
        refused = run("trust", "set", wrong, "auto", "--by", "ann", **where)
        assert refused.returncode == 1
        assert "timeout_increase" in refused.stderr or "api-error" in refused.stderr
    assert run("trust", "set", "api-error", "auto", **where).returncode == 2, "someone must say so"
    told = json.loads(run("audit", "--json", **where).stdout)
    latest = {name: told[0][name] for name in ("who", "what", "subject", "after")}
    assert latest == {"who": "ann", "what": "trust.set", "subject": "api-error/retry", "after": {"level": "auto"}}


def test_what_is_not_there_is_neither_reset_nor_decided(database_url: str) -> None:
    for arguments in (
        ("guardrails", "reset", "nothing", "--by", "ann"),
        ("approvals", "approve", "550e8400-e29b-41d4-a716-446655440000", "--by", "ann"),
        ("start", "--by", "ann"),
    ):
        refused = run(*arguments, UPRIGHT_DATABASE_URL=database_url)
        assert refused.returncode == 1, arguments
        assert "Error:" in refused.stderr
    assert run("audit", "--since", "yesterday", UPRIGHT_DATABASE_URL=database_url).returncode == 2
