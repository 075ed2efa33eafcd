"""The commands, as they are typed."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from upright.cli.doctor import secret_problem

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
    assert {path.name for path in (tmp_path / "ops").iterdir()} == {"flows", "runbooks", "models", "prefect.yaml"}
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
        "Secrets": "failed",
        "Database": "ok",
        "Prefect": "failed",
        "SMTP": "failed",
        "Service": "warning",
    }
    assert "5 bytes" in findings["Secrets"]["detail"]
    assert all(one["advice"] for one in findings.values() if one["status"] != "ok")


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        ("secret", "does not begin with whsec_"),
        ("whsec_???", "is not base64 after whsec_"),
        ("whsec_" + base64.b64encode(b"x" * 23).decode(), "has 23 bytes, fewer than 24"),
        ("whsec_" + base64.b64encode(b"x" * 24).decode(), None),
    ],
)
def test_secrets_are_judged(secret: str, problem: str | None) -> None:
    assert secret_problem(secret) == problem


def test_a_wrong_setting_is_told_by_its_name() -> None:
    refused = run("runbooks", "list", UPRIGHT_PORT="many")
    assert refused.returncode == 2
    assert "UPRIGHT_PORT" in refused.stderr


def test_an_unknown_error_is_told(fresh_postgres_url: str, tmp_path: Path) -> None:
    nothing = "00000000-0000-4000-8000-000000000000"
    refused = run("errors", "show", nothing, UPRIGHT_DATABASE_URL=fresh_postgres_url, UPRIGHT_DATA_DIR=str(tmp_path))
    assert refused.returncode == 1
    assert nothing in refused.stderr
