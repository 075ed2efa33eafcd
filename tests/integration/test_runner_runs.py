"""The runner: at once, once, in order, cancellable, and not lost with its process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, WorkPoolStatus
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Pending, Scheduled
from psycopg import sql

from upright.adapters.engines import EmbeddedPostgres, EmbeddedPrefect
from upright.adapters.runner import runner
from upright.domain.directive import Acknowledgement, Command, CommandResult
from upright.domain.event import Event
from upright.domain.verdict import Evidence, Status
from upright.testing.events import CANCELLED_FOR_TIMEOUT, DJANGO_OPERATIONAL_ERROR, EXHAUSTED, error_event
from upright.testing.ports import ScriptedDispatch
from upright.testing.slack import slack_server
from upright.testing.warm import until, warm

PROJECT = Path(__file__).parents[2]


class Application:
    """Carries every command out, one at a time while `gate` is closed."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.seen: list[Command] = []

    async def __call__(self, command: Command) -> CommandResult | None:
        self.seen.append(command)
        await self.gate.wait()
        acknowledgements = [
            Acknowledgement(directive_id=one.id, version=one.version, status="applied") for one in command.directives
        ]
        evidence = Evidence(kind="replay", outcome="passed")
        return CommandResult(command_id=command.id, status="done", acknowledgements=acknowledgements, evidence=evidence)


class Link:
    """Between the runner and Prefect; can be cut."""

    def __init__(self, port: int) -> None:
        self.refused = 0
        self._port, self._cut = port, False
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def cut(self) -> bool:
        return self._cut

    @cut.setter
    def cut(self, cut: bool) -> None:
        self._cut = cut
        if cut:
            for writer in self._open:
                writer.transport.abort()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            self.refused += 1
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._open |= {writer, back}
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
        self._open -= {writer, back}

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.fixture
async def link(prefect_server: EmbeddedPrefect) -> AsyncIterator[Link]:
    """What the session's processes of this test reach Prefect by."""
    link = Link(prefect_server.port)
    server = await asyncio.start_server(link.connected, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/api"
    async with server:
        with temporary_settings({PREFECT_API_URL: address}):
            yield link
        link.cut = True


@pytest.fixture
async def client(prefect_server: EmbeddedPrefect) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        yield client


def slow_query(**fields: Any) -> Any:
    return error_event(DJANGO_OPERATIONAL_ERROR, measurements=CANCELLED_FOR_TIMEOUT, **fields)


async def ended(client: PrefectClient, run_id: Any) -> FlowRun:
    async def final() -> FlowRun | None:
        run = await client.read_flow_run(run_id)
        return run if run.state is not None and run.state.is_final() else None

    return await until(final)


async def test_several_replicas_take_a_run_of_the_ui_exactly_once(
    fresh_postgres_url: str, client: PrefectClient
) -> None:
    one, other = Application(), Application()
    async with (
        warm(fresh_postgres_url, ScriptedDispatch(one), PROJECT) as first,
        warm(fresh_postgres_url, ScriptedDispatch(other), PROJECT, migrate=False) as second,
    ):
        errors = [await done(first) for _ in range(4)]
        one.seen.clear()
        made = [
            await client.create_flow_run_from_deployment(
                second.runner.deployed["database-error"].deployment_id,
                parameters={"error_id": str(error.error_id)},
            )
            for error in errors
        ]
        runs = [await ended(client, run.id) for run in made]
        assert [run.state.name if run.state else None for run in runs] == ["Completed"] * 4
        assert [run.run_count for run in runs] == [1] * 4
        assert len(one.seen) + len(other.seen) == 4


async def done(process: Any) -> Any:
    """An error of a fingerprint of its own, recovered already."""
    event = slow_query()
    await process.ended(await process.submit(event, fingerprint=uuid4().hex))
    return event


async def test_retry_in_the_ui_recovers_again(fresh_postgres_url: str, client: PrefectClient) -> None:
    application = Application()
    async with warm(fresh_postgres_url, ScriptedDispatch(application), PROJECT) as here:
        event = slow_query()
        first = await here.ended(await here.submit(event))
        assert first.flow_run_id is not None
        await ended(client, first.flow_run_id)
        application.seen.clear()
        await client.set_flow_run_state(first.flow_run_id, Scheduled(name="AwaitingRetry"), force=True)

        async def second() -> Any:
            found = await here.store.recovery_of_error(event.error_id)
            return found if found is not None and found.id != first.id and found.status.final else None

        again = await until(second)
        assert again.flow_run_id == first.flow_run_id
        assert len(application.seen) == 1


async def test_a_run_that_is_cancelled_in_the_ui_stops_and_takes_back_what_it_did(
    fresh_postgres_url: str, client: PrefectClient
) -> None:
    application = Application()
    application.gate.clear()
    async with warm(fresh_postgres_url, ScriptedDispatch(application), PROJECT) as here:
        recovery = await here.submit(slow_query())

        async def acting() -> Any:
            found = await here.store.recovery(recovery.id)
            return found.flow_run_id if application.seen else None

        run_id = await until(acting)
        assert (await here.store.desired("default", "django"))[1]
        await client.set_flow_run_state(run_id, Cancelling())
        run = await ended(client, run_id)
        assert run.state is not None
        assert (run.state.is_cancelled(), run.state.message) == (True, "Cancelled in Prefect")
        assert (await here.ended(recovery)).status is Status.CANCELLED
        assert (await here.store.desired("default", "django"))[1] == []
        # The process goes on with the next one.
        application.gate.set()
        after = await here.ended(await here.submit(slow_query(), fingerprint=uuid4().hex))
        assert after.status is Status.RECOVERED


async def test_admission_is_capped_and_goes_by_severity(
    fresh_postgres_url: str, prefect_server: EmbeddedPrefect
) -> None:
    application = Application()
    application.gate.clear()
    async with warm(fresh_postgres_url, ScriptedDispatch(application), PROJECT, max_concurrent_recoveries=1) as here:
        recoveries = [await here.submit(slow_query(), fingerprint=uuid4().hex)]

        async def busy() -> bool:
            return bool(application.seen)

        await until(busy)
        assert not here.runner.has_room
        low = slow_query(environment="staging")
        for event in (low, slow_query(), slow_query()):
            recoveries.append(await here.submit(event, fingerprint=uuid4().hex, queued=True))
        assert len(application.seen) == 1
        application.gate.set()
        finished = [await here.ended(one) for one in recoveries]
        assert {one.status for one in finished} == {Status.RECOVERED}
        order = sorted(range(4), key=lambda index: finished[index].finished_at or 0)  # type: ignore[arg-type, return-value]
        assert order == [0, 2, 3, 1]


async def test_a_queued_error_that_nobody_was_told_of_is_found(
    fresh_postgres_url: str, prefect_server: EmbeddedPrefect
) -> None:
    async with warm(fresh_postgres_url, ScriptedDispatch(Application()), PROJECT, reconcile_s=0.2) as here:
        recovery = await here.accept(slow_query(), queued=True)
        assert (await here.ended(recovery)).status is Status.RECOVERED


async def test_the_pool_shows_an_online_worker(fresh_postgres_url: str, client: PrefectClient) -> None:
    async with warm(fresh_postgres_url, ScriptedDispatch(Application()), PROJECT) as here:

        async def ready() -> bool:
            workers = await client.read_workers_for_work_pool("upright")
            online = [one for one in workers if one.name == here.dependencies.runner and one.status == "ONLINE"]
            return bool(online) and (await client.read_work_pool("upright")).status == WorkPoolStatus.READY

        assert await until(ready)


async def test_a_deployment_that_was_deleted_is_made_again(fresh_postgres_url: str, client: PrefectClient) -> None:
    async with warm(fresh_postgres_url, ScriptedDispatch(Application()), PROJECT) as here:
        await client.delete_deployment(here.runner.deployed["database-error"].deployment_id)
        after = await here.ended(await here.submit(slow_query()))
        assert after.status is Status.RECOVERED
        run = await ended(client, after.flow_run_id)
        assert run.deployment_id == here.runner.deployed["database-error"].deployment_id


async def test_prefect_being_away_is_no_death_of_a_process(
    fresh_postgres_url: str, client: PrefectClient, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MAX_EPOCH", 2)
    async with warm(fresh_postgres_url, ScriptedDispatch(Application()), PROJECT, lease_s=1, reconcile_s=0.2) as here:
        event = slow_query()
        accepted = await here.accept(event, queued=True, fingerprint=uuid4().hex)
        run = await client.create_flow_run_from_deployment(
            here.runner.deployed["database-error"].deployment_id,
            parameters={"error_id": str(event.error_id)},
            state=Pending(),
        )
        link.cut = True
        await here.store.bind(accepted.id, flow_run_id=run.id, runner="dead", lease_s=0)

        async def several_leases_later() -> bool:
            return link.refused >= 5

        link.refused = 0
        await until(several_leases_later)
        meanwhile = await here.store.recovery(accepted.id)
        link.cut = False
        assert (meanwhile.status, meanwhile.epoch) == (Status.RUNNING, 2)
        after = await here.ended(accepted)
        assert (after.status, after.flow_run_id) == (Status.RECOVERED, run.id)


async def test_the_caller_has_its_answer_while_prefect_is_away_and_the_run_its_end_afterwards(
    fresh_postgres_url: str, client: PrefectClient, link: Link
) -> None:
    application = Application()
    application.gate.clear()
    async with warm(fresh_postgres_url, ScriptedDispatch(application), PROJECT, lease_s=1, reconcile_s=0.2) as here:
        recovery = await here.submit(slow_query())

        async def acting() -> bool:
            return bool(application.seen)

        await until(acting)
        link.cut = True
        application.gate.set()
        after = await here.ended(recovery)
        assert after.status is Status.RECOVERED
        link.cut = False
        run = await ended(client, after.flow_run_id)
        assert run.state is not None
        assert run.state.is_completed()
        assert len(application.seen) == 1


async def test_a_run_goes_on_when_the_database_is_back(
    fresh_postgres_url: str, postgres_server: EmbeddedPostgres, client: PrefectClient
) -> None:
    application = Application()
    application.gate.clear()
    name = fresh_postgres_url.partition("?")[0].rpartition("/")[2]
    async with warm(
        fresh_postgres_url,
        ScriptedDispatch(application),
        PROJECT,
        lease_s=1,
        reconcile_s=0.2,
        max_concurrent_recoveries=1,
    ) as here:
        recovery = await here.submit(slow_query())

        async def acting() -> bool:
            return bool(application.seen)

        async def left_alone() -> bool:
            return here.runner.has_room

        await until(acting)
        with psycopg.connect(postgres_server.url(), autocommit=True) as admin:
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            application.gate.set()
            await until(left_alone)
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(name)))
        after = await here.ended(recovery)
        assert after.status is Status.RECOVERED
        run = await ended(client, after.flow_run_id)
        assert run.state is not None
        assert run.state.is_completed()


VICTIM = """
    import asyncio, sys
    from pathlib import Path
    from uuid import UUID
    from upright.domain.directive import Acknowledgement, CommandResult
    from upright.domain.event import Event
    from upright.domain.verdict import Evidence
    from upright.testing.ports import ScriptedDispatch
    from upright.testing.warm import warm

    async def application(command):
        name = command.directives[0].strategy
        if name != "cache_clear":
            print("acting", flush=True)
            await asyncio.Event().wait()
        done = [
            Acknowledgement(directive_id=one.id, version=one.version, status="applied") for one in command.directives
        ]
        failed = Evidence(kind="replay", outcome="failed")
        return CommandResult(command_id=command.id, status="done", acknowledgements=done, evidence=failed)

    async def main():
        event = Event.model_validate_json(sys.argv[3])
        async with warm(sys.argv[1], ScriptedDispatch(application), Path(sys.argv[2]), lease_s=1) as here:
            print((await here.submit(event)).id, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
"""


TELLER = """
    import asyncio, sys
    from pathlib import Path
    from upright.domain.directive import Acknowledgement, CommandResult
    from upright.domain.event import Event
    from upright.domain.verdict import Evidence
    from upright.services import alerts
    from upright.testing.ports import ScriptedDispatch
    from upright.testing.warm import warm

    async def application(command):
        done = [
            Acknowledgement(directive_id=one.id, version=one.version, status="applied") for one in command.directives
        ]
        passed = Evidence(kind="replay", outcome="passed")
        return CommandResult(command_id=command.id, status="done", acknowledgements=done, evidence=passed)

    async def stuck(*_):
        print("telling", flush=True)
        await asyncio.Event().wait()

    alerts.send = stuck

    async def main():
        event = Event.model_validate_json(sys.argv[3])
        async with warm(sys.argv[1], ScriptedDispatch(application), Path(sys.argv[2]), lease_s=1) as here:
            print((await here.submit(event)).id, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
"""


async def killed_when_it_says(word: str, script: Path, url: str, event: Event) -> str:
    """The id of the recovery that it was about."""
    victim = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), url, str(PROJECT), event.model_dump_json()),
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "src")},
    )
    assert victim.stdout is not None
    try:
        async with asyncio.timeout(60):
            recovery_id = (await victim.stdout.readline()).decode().strip()
            assert (await victim.stdout.readline()).decode().strip() == word
    finally:
        victim.send_signal(signal.SIGKILL)
        await victim.wait()
    return recovery_id


async def test_people_are_told_of_a_recovery_whose_process_was_killed_after_the_verdict(
    fresh_postgres_url: str, client: PrefectClient, tmp_path: Path
) -> None:
    script = tmp_path / "victim.py"
    script.write_text(textwrap.dedent(TELLER))
    recovery_id = UUID(await killed_when_it_says("telling", script, fresh_postgres_url, slow_query()))
    application = Application()
    async with warm(
        fresh_postgres_url, ScriptedDispatch(application), PROJECT, migrate=False, lease_s=1, reconcile_s=0.2
    ) as here:
        before = await here.store.recovery(recovery_id)
        assert before.status is Status.RECOVERED

        async def told() -> Any:
            return await here.store.alerts(recovery_id)

        await until(told)
        run = await ended(client, before.flow_run_id)
        assert run.state is not None
        assert (run.state.is_completed(), run.run_count) == (True, 2)
        assert application.seen == [], "nothing is done again"
        latest = await here.store.recovery_of_error(before.error_id)
        assert latest is not None
        assert (latest.id, latest.finished_at) == (before.id, before.finished_at)


async def test_a_run_whose_process_is_killed_goes_on_in_another_without_repeating_itself(
    fresh_postgres_url: str, client: PrefectClient, tmp_path: Path
) -> None:
    measurements = {**EXHAUSTED, "cache": {"alias": "default", "key": "catalog:42"}}
    event = error_event(DJANGO_OPERATIONAL_ERROR, measurements=measurements)
    script = tmp_path / "victim.py"
    script.write_text(textwrap.dedent(VICTIM))
    recovery_id = await killed_when_it_says("acting", script, fresh_postgres_url, event)
    application = Application()
    async with warm(
        fresh_postgres_url, ScriptedDispatch(application), PROJECT, migrate=False, lease_s=1, reconcile_s=0.2
    ) as here:

        async def final() -> Any:
            found = await here.store.recovery_of_error(event.error_id)
            return found if found is not None and found.status.final else None

        after = await until(final)
        assert str(after.id) == recovery_id
        assert after.status is Status.RECOVERED
        assert after.epoch > 1
        # What was finished before the kill was not done again; what was interrupted was.
        assert [command.directives[0].strategy for command in application.seen] == ["pool_increase"]
        assert {one.strategy: one.verdict.value for one in after.actions} == {
            "cache_clear": "not_recovered",
            "timeout_increase": "skipped",
            "pool_increase": "recovered",
        }
        run = await ended(client, after.flow_run_id)
        assert run.state is not None
        assert run.state.is_completed()
        assert run.run_count == 2

        async def noted() -> bool:
            where = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
            found = await client.read_task_runs(flow_run_filter=where)
            return any(
                one.name == "cache_clear" and one.state is not None and one.state.name == "Cached" for one in found
            )

        assert await until(noted)


async def test_the_message_in_slack_tells_what_was_tried_and_leads_to_the_run(
    fresh_postgres_url: str, client: PrefectClient
) -> None:
    with slack_server() as slack:
        slack.failing.append(503)
        settings: dict[str, Any] = {"alert_hosts": [slack.host], "alert_recipients": [slack.url]}
        async with warm(fresh_postgres_url, ScriptedDispatch(Application()), PROJECT, **settings) as here:
            recovery = await here.submit(slow_query())

            async def told() -> Any:
                return [one for one in await here.store.alerts(recovery.id) if one.status == "sent"]

            [sent] = await until(told)
            run_id = (await here.store.recovery(recovery.id)).flow_run_id
            await ended(client, run_id)
        assert (sent.channel, sent.attempt) == ("slack", 2)
        assert "[critical] Recovered: OperationalError in django" in slack.text_of()
        assert "Timeout Increase: recovered." in slack.text_of()
        assert f"/runs/flow-run/{run_id}|The run in Prefect>" in slack.text_of()
        assert slack.refused == []
