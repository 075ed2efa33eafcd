"""Runs that wait for a person, on a real Prefect server: every way to answer, none lost, nobody blocked."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from pydantic import SecretStr

from upright.adapters import default_project
from upright.adapters.runner import approval
from upright.domain.directive import Acknowledgement, AlertSettings, Command, CommandResult, SyncRequest
from upright.domain.verdict import Evidence, Status, Verdict
from upright.services.guardrails import Approval
from upright.services.ports import RecoveryRecord
from upright.testing.events import CANCELLED_FOR_TIMEOUT, DJANGO_OPERATIONAL_ERROR, error_event
from upright.testing.intake import Replica, service_on
from upright.testing.ports import RecordingMailer, ScriptedDispatch
from upright.testing.warm import Warm, until, warm

ROOT = Path(__file__).parents[2]
SECRET = "a secret of the service's own"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One in which a longer timeout needs a person."""
    return asking(tmp_path_factory.mktemp("asking") / "project", 3600)


def asking(place: Path, approval_s: int) -> Path:
    default_project.make(place)
    path = place / "runbooks" / "guardrails.yaml"
    text = path.read_text().replace("timeout_increase: {", "timeout_increase: {trust: approve, ")
    path.write_text(text.replace("approval_s: 3600", f"approval_s: {approval_s}"))
    return place


async def application(command: Command) -> CommandResult:
    """Nobody waits: an agent of it sees the failure before the action, and the repair after."""
    if command.kind == "replay":
        return CommandResult(command_id=command.id, status="done", evidence=evidence("failed"))
    done = [
        Acknowledgement(directive_id=one.id, version=one.version, status="applied", after=one.values)
        for one in command.directives
    ]
    return CommandResult(command_id=command.id, status="done", acknowledgements=done, evidence=evidence("passed"))


def evidence(outcome: Any) -> Evidence:
    return Evidence(kind="replay", outcome=outcome)


@pytest.fixture
async def client(prefect_server: Any) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        yield client


@pytest.fixture
async def here(fresh_postgres_url: str, client: PrefectClient, project: Path) -> AsyncIterator[Warm]:
    async with warm(fresh_postgres_url, ScriptedDispatch(application), project) as found:
        yield found


def slow_query(**fields: Any) -> Any:
    return error_event(DJANGO_OPERATIONAL_ERROR, measurements=CANCELLED_FOR_TIMEOUT, **fields)


async def asked(here: Warm, recovery: RecoveryRecord) -> Approval:
    async def there() -> Approval | None:
        return (await here.store.approvals_of(recovery.id)).get("timeout_increase")

    return await until(there)


async def paused(here: Warm, client: PrefectClient, recovery: RecoveryRecord) -> FlowRun:
    async def so() -> FlowRun | None:
        record = await here.store.recovery(recovery.id)
        if record.flow_run_id is None:
            return None
        run = await client.read_flow_run(record.flow_run_id)
        return run if run.state is not None and run.state.is_paused() else None

    return await until(so)


async def ended(client: PrefectClient, run_id: Any) -> FlowRun:
    async def final() -> FlowRun | None:
        run = await client.read_flow_run(run_id)
        return run if run.state is not None and run.state.is_final() else None

    return await until(final)


def of_strategy(record: RecoveryRecord) -> tuple[Verdict, str]:
    [action] = [one for one in record.actions if one.strategy == "timeout_increase"]
    return action.verdict, action.reason


async def test_a_person_approves_in_the_form_of_the_ui(here: Warm, client: PrefectClient) -> None:
    recovery = await here.submit(slow_query())
    run = await paused(here, client, recovery)
    assert (await here.store.desired("default", "django"))[1] == [], "nothing is done before"
    keyset = run.state.state_details.run_input_keyset if run.state else None
    assert keyset is not None
    schema = json.loads(await client.read_flow_run_input(run.id, keyset["schema"]))
    assert set(schema["properties"]) == {"decision", "by", "why"}
    assert "1200" in await client.read_flow_run_input(run.id, keyset["description"])
    refused = await client.resume_flow_run(run.id, run_input={"decision": "perhaps", "by": "ann"})
    assert refused.status is SetStateStatus.REJECT
    await client.resume_flow_run(run.id, run_input={"decision": "approve", "by": "ann", "why": "at night"})
    after = await here.ended(recovery)
    assert (after.status, of_strategy(after)[0]) == (Status.RECOVERED, Verdict.RECOVERED)
    answer = await asked(here, recovery)
    assert (answer.status, answer.decided_by, answer.via, answer.why) == ("approved", "ann", "prefect", "at night")
    finished = await ended(client, run.id)
    assert finished.state is not None
    assert finished.state.is_completed()


async def test_a_person_rejects_in_the_ui(here: Warm, client: PrefectClient) -> None:
    recovery = await here.submit(slow_query())
    run = await paused(here, client, recovery)
    await client.resume_flow_run(run.id, run_input={"decision": "reject", "by": "ann", "why": "not now"})
    after = await here.ended(recovery)
    assert after.status is Status.NOT_RECOVERED
    assert of_strategy(after) == (Verdict.REFUSED, "rejected by ann: not now")
    assert (await here.store.desired("default", "django"))[1] == []
    finished = await ended(client, run.id)
    assert finished.state is not None
    assert finished.state.name == "NotRecovered"


def command(url: str, project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("UPRIGHT_")}
    return subprocess.run(
        [sys.executable, "-m", "upright.cli", *arguments],
        capture_output=True,
        text=True,
        env={
            **inherited,
            "PYTHONPATH": str(ROOT / "src"),
            "COLUMNS": "250",
            "UPRIGHT_DATABASE_URL": url,
            "UPRIGHT_PROJECT": str(project),
        },
        timeout=120,
        check=False,
    )


async def test_a_person_approves_on_the_command_line(
    here: Warm, client: PrefectClient, fresh_postgres_url: str, project: Path
) -> None:
    async def upright(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(command, fresh_postgres_url, project, *arguments)

    recovery = await here.submit(slow_query())
    run = await paused(here, client, recovery)
    [listed] = json.loads((await upright("approvals", "list", "--json")).stdout)
    done = await upright("approvals", "approve", listed["id"], "--by", "ann", "--why", "fine")
    assert done.returncode == 0, done.stderr
    after = await here.ended(recovery)
    assert after.status is Status.RECOVERED
    finished = await ended(client, run.id)
    assert finished.state is not None
    assert finished.state.is_completed()
    again = await upright("approvals", "reject", listed["id"], "--by", "bob")
    assert again.returncode == 1
    assert "approved already by ann (command line)" in again.stderr
    assert "Nothing waits" in (await upright("approvals", "list")).stdout
    audit = json.loads((await upright("audit", "--since", "1h", "--service", "django", "--json")).stdout)
    assert [one["who"] for one in audit if one["what"] == "approval.approved"] == ["ann"]
    shown = await upright("trust", "status", "--json")
    [trust] = [
        one
        for one in json.loads(shown.stdout)
        if (one["runbook"], one["strategy"]) == ("database-error", "timeout_increase")
    ]
    assert (trust["level"], trust["successes"], trust["verified"]) == ("approve", 1, 1)


async def test_a_person_approves_by_the_link_in_the_mail(
    fresh_postgres_url: str, client: PrefectClient, project: Path, replica_of: Callable[..., Awaitable[Replica]]
) -> None:
    mailer = RecordingMailer()
    settings = {
        "public_url": "http://upright/",
        "approval_secret": SecretStr(SECRET),
        "alert_recipients": ["ops@example.com"],
    }
    async with warm(fresh_postgres_url, ScriptedDispatch(application), project, **settings) as here:
        object.__setattr__(here.dependencies, "mailer", mailer)
        recovery = await here.submit(slow_query())
        run = await paused(here, client, recovery)
        [(to, subject, text)] = mailer.sent
        assert (to, subject) == (
            ("ops@example.com",),
            "[critical] Approval wanted: timeout_increase in django",
        )
        [link] = re.findall(r"http://upright/approve/\S+", text)
        intake = service_on(await replica_of(fresh_postgres_url), approval_secret=SecretStr(SECRET))
        page = await intake.sender.http.post(link, data={"decision": "approve", "by": "ann"})
        assert page.status_code == 200, page.text
        assert (await here.ended(recovery)).status is Status.RECOVERED
        finished = await ended(client, run.id)
        assert finished.state is not None
        assert finished.state.is_completed()
        await intake.sender.http.aclose()


async def test_without_an_answer_it_goes_to_people(
    fresh_postgres_url: str, client: PrefectClient, tmp_path: Path
) -> None:
    place = asking(tmp_path / "project", 2)
    async with warm(fresh_postgres_url, ScriptedDispatch(application), place) as here:
        request = SyncRequest(
            service="django",
            instance="host:1:boot",
            capabilities={"commands": ["apply", "replay"]},
            settings=AlertSettings(escalation_recipients=["boss@example.com"]),
        )
        await here.store.sync("default", request)
        recovery = await here.submit(slow_query())
        after = await here.ended(recovery)
        assert after.status is Status.NOT_RECOVERED
        assert of_strategy(after) == (Verdict.REFUSED, "it needs approval, and nobody answered in time")
        run = await ended(client, after.flow_run_id)
        assert run.state is not None
        assert run.state.name == "NotRecovered"
        kinds = [one.kind for one in await here.store.alerts(recovery.id)]
        assert "escalation" in kinds
        assert (await asked(here, recovery)).status == "expired"


async def test_a_run_that_waits_keeps_nobody_from_running(
    fresh_postgres_url: str, client: PrefectClient, project: Path
) -> None:
    async with warm(fresh_postgres_url, ScriptedDispatch(application), project, max_concurrent_recoveries=1) as here:
        waits = [await here.submit(slow_query(), fingerprint=uuid4().hex) for _ in range(2)]
        for one in waits:
            await paused(here, client, one)
        other = error_event(DJANGO_OPERATIONAL_ERROR, measurements={"cache": {"alias": "default", "key": "catalog:42"}})
        assert (await here.ended(await here.submit(other))).status is Status.RECOVERED
        for one in waits:
            await here.store.decide((await asked(here, one)).id, approve=True, by="ann", via="link")
        assert {(await here.ended(one)).status for one in waits} == {Status.RECOVERED}
        for one in waits:
            await ended(client, (await here.store.recovery(one.id)).flow_run_id)

        async def room() -> bool:
            return here.runner.has_room

        assert await until(room), "each has given its place back once"


VICTIM = """
    import asyncio, sys
    from pathlib import Path
    from upright.domain.event import Event
    from upright.testing.ports import ScriptedDispatch
    from upright.testing.warm import until, warm

    async def application(command):
        raise AssertionError("nothing is to be done before it is approved")

    async def main():
        event = Event.model_validate_json(sys.argv[3])
        async with warm(sys.argv[1], ScriptedDispatch(application), Path(sys.argv[2]), lease_s=1) as here:
            print((await here.submit(event)).id, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
"""


@pytest.mark.parametrize("answered", ["before it is taken up", "after"])
async def test_a_question_outlives_its_process(
    answered: str, fresh_postgres_url: str, client: PrefectClient, project: Path, tmp_path: Path
) -> None:
    script = tmp_path / "victim.py"
    script.write_text(textwrap.dedent(VICTIM))
    event = slow_query()
    victim = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), fresh_postgres_url, str(project), event.model_dump_json()),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert victim.stdout is not None
    given = {"decision": "approve", "by": "ann"}
    try:
        async with asyncio.timeout(60):
            recovery_id = UUID((await victim.stdout.readline()).decode().strip())
        watcher = warm(fresh_postgres_url, ScriptedDispatch(), project, migrate=False, lease_s=60, reconcile_s=60)
        async with watcher as looking:
            record = await looking.store.recovery(recovery_id)
            run = await paused(looking, client, record)
    finally:
        victim.send_signal(signal.SIGKILL)
        await victim.wait()
    if answered == "before it is taken up":
        await client.resume_flow_run(run.id, run_input=given)
    async with warm(
        fresh_postgres_url, ScriptedDispatch(application), project, migrate=False, lease_s=1, reconcile_s=0.2
    ) as here:
        if answered == "after":

            async def taken_up() -> bool:
                again = await client.read_flow_run(run.id)
                return again.run_count > 1 and again.state is not None and again.state.is_paused()

            await until(taken_up)
            await client.resume_flow_run(run.id, run_input=given)
        after = await here.ended(record)
        assert (after.id, after.status) == (recovery_id, Status.RECOVERED)
        answer = await asked(here, after)
        assert (answer.status, answer.decided_by, answer.via) == ("approved", "ann", "prefect")
        finished = await ended(client, run.id)
        assert finished.state is not None
        assert finished.state.is_completed()


async def test_a_recovery_that_runs_is_stopped(fresh_postgres_url: str, client: PrefectClient) -> None:
    acting, go_on = asyncio.Event(), asyncio.Event()

    async def slow(command: Command) -> CommandResult:
        acting.set()
        await go_on.wait()
        return await application(command)

    async with warm(fresh_postgres_url, ScriptedDispatch(slow), ROOT) as here:
        recovery = await here.submit(slow_query())
        await acting.wait()
        assert len((await here.store.desired("default", "django"))[1]) == 1
        stopped = await asyncio.to_thread(
            command, fresh_postgres_url, ROOT, "stop", "--service", "django", "--by", "ann", "--why", "deploy"
        )
        assert "Changes withdrawn: 1." in stopped.stdout, stopped.stderr
        assert (await here.store.desired("default", "django"))[1] == []
        go_on.set()
        after = await here.ended(recovery)
        assert after.status is Status.UNKNOWN, "the evidence is of a change that is gone"
        assert (await here.store.desired("default", "django"))[1] == []
        later = await here.ended(await here.submit(slow_query(), fingerprint=uuid4().hex))
        assert later.withheld == "recovery is stopped for django by ann: deploy"
        run = await ended(client, later.flow_run_id)
        assert run.state is not None
        assert run.state.name == "NotRecovered"
        status = await asyncio.to_thread(command, fresh_postgres_url, ROOT, "guardrails", "status")
        assert "deploy" in status.stdout
        started = await asyncio.to_thread(
            command, fresh_postgres_url, ROOT, "start", "--service", "django", "--by", "ann"
        )
        assert started.returncode == 0, started.stderr
        again = await here.ended(await here.submit(slow_query(), fingerprint=uuid4().hex))
        assert again.status is Status.RECOVERED


async def test_an_answer_counts_though_prefect_takes_no_pause(
    here: Warm, client: PrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(**_: Any) -> None:
        raise OSError("Prefect is away")

    monkeypatch.setattr(approval, "apause_flow_run", away)
    recovery = await here.submit(slow_query())
    question = await asked(here, recovery)
    await here.store.decide(question.id, approve=True, by="ann", via="command line")
    after = await here.ended(recovery)
    assert after.status is Status.RECOVERED
    run = await ended(client, after.flow_run_id)
    assert run.state is not None
    assert run.state.is_completed()
