"""The whole stack for a measurement: engines, service, and the patient under gunicorn, two workers of eight threads."""

from __future__ import annotations

import base64
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx

from upright.adapters.engines import EmbeddedPostgres, EmbeddedPrefect, free_port

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Stack:
    patient: str
    service: str
    prefect_api: str
    database_url: str
    environment: dict[str, str]
    """What the service runs with; a stock Prefect worker needs the same."""
    patient_database_url: str


@contextmanager
def process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a process group of its own, ended with everything it started."""
    with log.open("ab") as sink:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=sink, stderr=sink, start_new_session=True
        )  # fmt: skip
    try:
        yield child
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def wait_for(ready: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        try:
            if ready():
                return
        except (httpx.HTTPError, OSError):
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{what} was not ready within {timeout_s:g} s")


def answers(url: str) -> Callable[[], bool]:
    return lambda: httpx.get(url, timeout=5).status_code == 200


def socket_directory(postgres: EmbeddedPostgres) -> str:
    """Where its socket is, as libpq takes it for a host."""
    return parse_qs(urlsplit(postgres.url()).query)["host"][0]


@contextmanager
def running(*, recovery: bool = True) -> Iterator[Stack]:
    """Start everything on free ports in a temporary directory."""
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="upright-bench-")))
        medic = stack.enter_context(EmbeddedPostgres(data / "postgres"))
        patient_database = stack.enter_context(EmbeddedPostgres(data / "patient-postgres"))
        prefect = stack.enter_context(
            EmbeddedPrefect(data / "prefect", medic.ensure_database("prefect"))
        )  # fmt: skip
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        port, patient_port = free_port(), free_port()
        common = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}:{ROOT / 'integrations/django/src'}"}
        service_environment = {
            **common,
            "PREFECT_API_URL": prefect.api_url,
            "UPRIGHT_DATABASE_URL": medic.ensure_database("upright"),
            "UPRIGHT_SECRETS": secret,
            "UPRIGHT_PORT": str(port),
            "UPRIGHT_PROJECT": str(ROOT),
            "UPRIGHT_DATA_DIR": str(data / "upright"),
        }
        command = [sys.executable, "-m", "upright.cli", "serve", "--project", str(ROOT)]
        stack.enter_context(process(command, service_environment, data / "service.log"))
        service = f"http://127.0.0.1:{port}"
        wait_for(answers(f"{service}/readyz"), "the service")

        patient_environment = {
            **common,
            "DJANGO_SETTINGS_MODULE": "bench.patient.settings",
            "PATIENT_DATABASE": "patient",
            "PATIENT_HOST": socket_directory(patient_database),
            "PATIENT_SPOOL": str(data / "spool"),
        }
        patient_url = patient_database.ensure_database("patient")
        if recovery:
            patient_environment |= {"UPRIGHT_URL": service, "UPRIGHT_SECRET": secret}
        migrate = [sys.executable, "-m", "django", "migrate", "-v0"]
        subprocess.run(migrate, cwd=ROOT, env=patient_environment, check=True)
        gunicorn = [
            sys.executable, "-m", "gunicorn", "bench.patient.wsgi", "--bind", f"127.0.0.1:{patient_port}",
            "--workers", "2", "--threads", "8", "--log-level", "warning",
        ]  # fmt: skip
        stack.enter_context(process(gunicorn, patient_environment, data / "patient.log"))
        patient = f"http://127.0.0.1:{patient_port}"
        wait_for(answers(f"{patient}/healthy/"), "the patient")
        yield Stack(
            patient,
            service,
            prefect.api_url,
            service_environment["UPRIGHT_DATABASE_URL"],
            service_environment,
            patient_url,
        )
