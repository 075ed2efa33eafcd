"""The stack that is broken: a whole service, the patient, and beside it the control, which has recovery switched off.

Everything is real: PostgreSQL, two Redis servers, gunicorn with two workers of eight threads, Celery workers, peers.
The control is the same application under the same faults; what it shows is what happens without recovery.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import psycopg
import redis
from psycopg.rows import dict_row

from upright.adapters import default_project
from upright.adapters.engines import EmbeddedPostgres, EmbeddedRedis, free_port
from upright.adapters.store import Database, PostgresStore
from upright.testing.service import RunningService, running_service

from .peers import Peers

HERE = Path(__file__).parent
PATIENT = HERE / "patient"
HEALTH = "{interval_s: 0.5, timeout_s: 1, failures: 2}"
NEVER = "{interval_s: 600, timeout_s: 1, failures: 100}"
NO_REUSE = httpx.Limits(max_connections=200, max_keepalive_connections=0)
"""A connection that is kept leads to the same worker each time."""
SUPERVISOR = """
[supervisord]
nodaemon=true
logfile={place}/supervisord.log
pidfile={place}/supervisord.pid
childlogdir={place}
user={user}

[unix_http_server]
file={socket}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[program:desk]
command={command}
process_name=%(program_name)s_%(process_num)02d
numprocs=1
startsecs=1
startretries=0
"""
Found = TypeVar("Found")


def eventually(look: Callable[[], Found], timeout_s: float = 20) -> Found:
    """Looks until what it finds is true, and gives the last thing found."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


@dataclass(frozen=True)
class Answer:
    status: int
    """0 where none came."""
    body: Any
    headers: Mapping[str, str]

    @property
    def error(self) -> dict[str, Any]:
        return self.body.get("error", {}) if isinstance(self.body, dict) else {}

    @property
    def recovery(self) -> dict[str, Any]:
        return self.body.get("recovery", {}) if isinstance(self.body, dict) else {}

    @property
    def failed(self) -> bool:
        """A refusal by a throttle or a circuit is no failure, and no success either."""
        return self.status != 200 and not self.refused

    @property
    def refused(self) -> bool:
        return self.status == 429 or self.error.get("type") == "CircuitOpen"


@dataclass
class Application:
    """One gunicorn master with its workers."""

    service: str
    who: str
    port: int
    pidfile: Path
    log: Path
    environment: dict[str, str]
    command: list[str]
    workers: int
    process: subprocess.Popen[bytes] | None = None
    stopped: list[int] = field(default_factory=list[int])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=PATIENT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def pids(self) -> list[int]:
        """Workers by the process table."""
        if self.process is None:
            return []
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []
        return sorted(one.pid for one in children if one.status() != psutil.STATUS_ZOMBIE)

    def hang(self, *pids: int) -> None:
        for pid in pids or self.pids():
            os.kill(pid, signal.SIGSTOP)

    def stop(self) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


class Stage:
    def __init__(self, place: Path) -> None:
        self.place = place
        self.peers = Peers()
        # The older application that a full fallback asks.
        self.alternative = Peers()
        self.postgres = EmbeddedPostgres(place / "db", port=free_port(), max_connections=60, durable=False)
        self.redis = EmbeddedRedis(place / "cache")
        self.broker = EmbeddedRedis(place / "broker")
        self.http = httpx.Client(timeout=25, trust_env=False, limits=NO_REUSE)
        self.supervisor_socket = place / "s"
        self.service: RunningService | None = None
        self._sides: dict[str, Application] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._ports: dict[str, int] = {}
        self._exit = contextlib.ExitStack()

    # Start and end

    def open(self) -> None:
        for engine in (self.postgres, self.redis, self.broker):
            self._exit.enter_context(engine)
        self._exit.callback(self.peers.close)
        self._exit.callback(self.alternative.close)
        self.database_url = self.postgres.ensure_database("patient")
        self.service = self._exit.enter_context(
            running_service(self._project(), data_dir=self.place / "service", environment={"UPRIGHT_EXPLORATION": "0"})
        )
        self._exit.callback(self._stop_all)
        self.patient = self.application("patient", enabled=True)
        self.control = self.application("patient", who="control", enabled=False)
        for command in (["migrate", "-v0"], ["createcachetable"]):
            subprocess.run(
                [sys.executable, "-m", "django", *command], env=self.control.environment, check=True, timeout=60
            )
        self.sql("CREATE TABLE menu (who text PRIMARY KEY, body text NOT NULL DEFAULT '', seen int NOT NULL DEFAULT 0)")
        for who in ("patient", "control", "patient-locked", "control-locked", "deadlock-1", "deadlock-2"):
            self.sql("INSERT INTO menu VALUES (%s, 'menu: soup')", who)
        for one in (self.patient, self.control):
            one.start()
            self._celery(one)
        for one in (self.patient, self.control):
            self.await_up(one)
        eventually(lambda: len(self.instances("patient")) == 2 and self._measured(), 60)

    def close(self) -> None:
        self._exit.close()
        self.http.close()

    def application(
        self, service: str, *, who: str = "", enabled: bool, workers: int = 2, threads: int = 8, kind: str = "gthread",
        port: int = 0, name: str = "", full: bool = False,
    ) -> Application:  # fmt: skip
        assert self.service is not None
        who = who or (service if enabled else f"{service}-control")
        name = name or who
        port = port or (self.port(name) if enabled else free_port())
        directory = self.place / name
        directory.mkdir(exist_ok=True)
        pidfile = self.place / f"{name}.pid"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("UPRIGHT_", "PREFECT_"))}
        environment = {
            **inherited,
            "PYTHONPATH": os.pathsep.join([str(PATIENT), *(one for one in sys.path if one)]),
            "DJANGO_SETTINGS_MODULE": "settings",
            "PATIENT_SERVICE": service,
            "PATIENT_WHO": who,
            "PATIENT_ENABLED": "1" if enabled else "0",
            "PATIENT_DIR": str(directory),
            "PATIENT_DATABASE_URL": self.database_url,
            "PATIENT_DATABASE_HOST": str(self.postgres.socket_dir),
            "PATIENT_DATABASE_PORT": str(self.postgres.port),
            "PATIENT_REDIS_URL": self.redis.url(),
            "PATIENT_BROKER_URL": self.broker.url(),
            "PATIENT_UPRIGHT_URL": self.service.url,
            "PATIENT_UPRIGHT_SECRET": self.service.secret,
            "PATIENT_PEER_URL": self.peers.url,
            "PATIENT_ALTERNATIVE_URL": self.alternative.url,
            "PATIENT_OWN_URL": f"http://127.0.0.1:{port}",
            "PATIENT_FULL": "1" if full else "",
        }
        command = [
            *(sys.executable, "-m", "gunicorn", "--workers", str(workers), "--bind", f"127.0.0.1:{port}"),
            *("--pid", str(pidfile), "--timeout", "120", "--graceful-timeout", "3", "--no-control-socket"),
            *("-k", kind, *(("--threads", str(threads)) if kind == "gthread" else ())),
            "django.core.wsgi:get_wsgi_application()",
        ]
        return Application(service, who, port, pidfile, self.place / f"{name}.log", environment, command, workers)

    @contextlib.contextmanager
    def beside(self, service: str, **how: Any) -> Iterator[tuple[Application, Application]]:
        """Another service and its control, for faults that would break the stack for the others."""
        own = self.application(service, enabled=True, **how)
        control = self.application(service, enabled=False, **{**how, "name": f"{how.get('name', service)}-control"})
        try:
            for one in (own, control):
                one.start()
            for one in (own, control):
                self.await_up(one)
            eventually(lambda: len(self.instances(service)) >= how.get("workers", 2), 30)
            eventually(lambda: self._watch_is_well(service), 20)
            yield own, control
        finally:
            own.stop()
            control.stop()

    @contextlib.contextmanager
    def desk(self) -> Iterator[tuple[Application, Application]]:
        """A service that supervisord runs, which is no Django application; its control is run by nobody."""
        pair: list[Application] = []
        member = [sys.executable, str(PATIENT / "desk.py")]
        for who, port in (("desk", self.port("desk")), ("desk-control", free_port())):
            command = [*member, str(port)]
            if who == "desk":
                configuration = self.place / "supervisord.conf"
                configuration.write_text(
                    SUPERVISOR.format(
                        place=self.place, socket=self.supervisor_socket, user=os.geteuid(), command=" ".join(command)
                    )
                )
                command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration)]
            log = self.place / f"{who}.log"
            pair.append(Application("desk", who, port, log, log, dict(os.environ), command, 1))
        own, control = pair
        try:
            for one in pair:
                one.start()
            for one in pair:
                eventually(lambda one=one: self.ask(one, "/", timeout=2).status == 200)
            eventually(lambda: self._watch_is_well("desk"), 30)
            yield own, control
        finally:
            for one in pair:
                one.stop()

    def await_up(self, one: Application) -> None:
        def up() -> bool:
            assert one.process is not None
            assert one.process.poll() is None, one.log.read_text()[-3000:]
            return len(one.pids()) == one.workers and self.ask(one, "/healthz", timeout=2).status == 200

        assert eventually(up, 60), f"{one.who} did not start"
        # Each worker loads the application with its first request.
        for _ in range(4 * one.workers):
            self.ask(one, "/healthz", timeout=5)

    def port(self, name: str) -> int:
        if name not in self._ports:
            self._ports[name] = free_port()
        return self._ports[name]

    def _project(self) -> Path:
        project = self.place / "project"
        default_project.make(project)
        for one in (HERE / "runbooks").glob("*.yaml"):
            (project / "runbooks" / one.name).write_text(one.read_text())
        (project / "platforms.yaml").write_text(self._platforms())
        return project

    def _platforms(self) -> str:
        def gunicorn(name: str, most: int, health: str, *more: str, url: bool = True) -> list[str]:
            lines = [
                f"  {name}:",
                "    platform: gunicorn",
                f"    max_processes: {most}",
                f"    pidfile: {self.place / name}.pid",
                f"    health: {health}",
            ]
            if url:
                lines.append(f"    health_url: http://127.0.0.1:{self.port(name)}/healthz")
            return lines + [f"    {one}" for one in more]

        lines = ["services:"]
        lines += gunicorn("solo", 3, NEVER, url=False)
        lines += gunicorn("pinned", 6, NEVER)
        lines += gunicorn("heap", 2, NEVER)
        lines += gunicorn("alike", 2, NEVER, "max_memory_mb: 140")
        lines += gunicorn("ward", 2, NEVER)
        lines += gunicorn("hung", 2, HEALTH)
        lines += gunicorn("deploy", 2, HEALTH)
        lines += ["  duo:", "    platform: gunicorn", "    max_processes: 2", f"    health: {HEALTH}", "    replicas:"]
        for name in ("duo", "duo-2"):
            lines += [
                f"      - name: {name}",
                f"        pidfile: {self.place / name}.pid",
                f"        health_url: http://127.0.0.1:{self.port(name)}/healthz",
            ]
        lines += [
            "  desk:",
            "    platform: supervisor",
            f"    url: unix://{self.supervisor_socket}",
            "    group: desk",
            "    max_processes: 2",
            f"    health: {HEALTH}",
            f"    health_url: http://127.0.0.1:{self.port('desk')}/",
        ]
        return "\n".join(lines) + "\n"

    def _celery(self, one: Application) -> None:
        command = [
            *(sys.executable, "-m", "celery", "-A", "work", "worker", "-c", "1", "-l", "WARNING"),
            *("-Q", f"{one.who}-work", "-n", f"{one.who}-{len(self._children)}@faults"),
            *("--without-gossip", "--without-mingle"),
        ]
        with (self.place / f"{one.who}-worker.log").open("ab") as log:
            self._children.append(
                subprocess.Popen(
                    command, cwd=PATIENT, env=one.environment, stdout=log, stderr=log, start_new_session=True
                )
            )

    @contextlib.contextmanager
    def another_worker(self, one: Application) -> Iterator[None]:
        self._celery(one)
        child = self._children[-1]
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def _stop_all(self) -> None:
        for one in (self.patient, self.control):
            one.stop()
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    # Ask

    def ask(
        self, who: Application, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None,
        timeout: float = 25,
    ) -> Answer:  # fmt: skip
        try:
            answer = self.http.request(
                method, who.url + path, headers={"Accept": "application/json", **(headers or {})}, timeout=timeout
            )
        except httpx.HTTPError as error:
            return Answer(0, {"error": {"type": type(error).__name__}}, {})
        try:
            body = answer.json()
        except ValueError:
            body = answer.text
        return Answer(answer.status_code, body, answer.headers)

    def each_worker(self, who: Application, path: str, *, timeout_s: float = 20) -> dict[int, Answer]:
        """The answer of every worker, told apart by the pid that it gives."""
        found: dict[int, Answer] = {}

        def all_of_them() -> bool:
            answer = self.ask(who, path)
            if answer.status == 200:
                found[int(answer.body["pid"] if isinstance(answer.body, dict) else answer.body)] = answer
            return set(found) >= set(who.pids())

        eventually(all_of_them, timeout_s)
        return found

    def sql(self, query: str, *values: object) -> list[dict[str, Any]]:
        """In the patient's database."""
        return _rows(self.database_url, query, values)

    def of_service(self, query: str, *values: object) -> list[dict[str, Any]]:
        """In the service's database."""
        assert self.service is not None
        return _rows(self.service.database_url, query, values)

    def instances(self, service: str) -> list[dict[str, Any]]:
        return self.of_service("SELECT * FROM upright.instance WHERE service = %s AND gone_at IS NULL", service)

    def now(self) -> Any:
        return self.of_service("SELECT clock_timestamp() AS now")[0]["now"]

    def recoveries(self, service: str, since: Any) -> list[dict[str, Any]]:
        # By when the error happened: what could not be told at once arrives later, while another fault is there.
        return self.of_service(
            "SELECT r.*, e.type FROM upright.recovery r JOIN upright.error e ON e.id = r.error_id"
            " WHERE r.service = %s AND e.occurred_at >= %s ORDER BY r.created_at",
            service,
            since,
        )

    def actions(self, recovery: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.of_service("SELECT * FROM upright.action WHERE recovery_id = %s ORDER BY position", recovery["id"])

    # End

    def settle(self, service: str, since: Any) -> None:
        """Waits for what is still open, and withdraws what is in force, as the service itself does."""
        eventually(
            lambda: not [one for one in self.recoveries(service, since) if one["status"] in ("queued", "running")], 40
        )
        asyncio.run(self._withdraw(service))

    async def _withdraw(self, service: str) -> None:
        assert self.service is not None
        rows = self.of_service(
            "SELECT id FROM upright.directive WHERE service = %s AND scope = 'process' AND withdrawn_at IS NULL"
            " AND superseded_at IS NULL AND expires_at > clock_timestamp()",
            service,
        )
        if not rows:
            return
        from upright.adapters.bus import Bus

        bus = Bus(self.service.database_url)
        await bus.open()
        database = await Database.open(self.service.database_url, announcer=bus)
        try:
            store = PostgresStore(database, instance_ttl_s=60)
            for row in rows:
                await store.withdraw_directive(row["id"])
        finally:
            await bus.close()
            await database.close()

    def redis_client(self) -> redis.Redis:
        return redis.Redis.from_url(self.redis.url())

    def broker_client(self) -> redis.Redis:
        return redis.Redis.from_url(self.broker.url())

    def leftovers(self) -> list[str]:
        """What recoveries have left on the patient, by PostgreSQL, Redis and the process table; empty: nothing."""
        found: dict[str, str] = {}

        def look() -> bool:
            found.clear()
            found.update(self._left())
            return not found

        eventually(look, 25)
        return list(found.values())

    def _left(self) -> Iterator[tuple[str, str]]:
        """Named by where it was seen."""
        pids = self.patient.pids()
        if len(pids) != self.patient.workers:
            yield "processes", f"{len(pids)} workers"
        [row] = self.sql(
            "SELECT count(*) AS open FROM pg_stat_activity WHERE application_name = 'patient'"
            " AND backend_type = 'client backend'"
        )
        # Each worker's own pool, and its agent's connection.
        if row["open"] > self.patient.workers * (2 + 1):
            yield "connections", f"{row['open']} connections in pg_stat_activity"
        for pid, answer in self.each_worker(self.patient, "/state/", timeout_s=5).items():
            if answer.body["statement_timeout"] != "500ms":
                yield "timeout", f"statement_timeout of {pid} is {answer.body['statement_timeout']}"
            if answer.body["pool_max"] != 2:
                yield "pool", f"the pool of {pid} has a maximum of {answer.body['pool_max']}"
        with self.redis_client() as client:
            kept = [key for key in client.scan_iter("*LIMIT*") if client.ttl(key) < 0]
        if kept:
            yield "counters", f"{len(kept)} counters in Redis that never expire"
        with self.broker_client() as client:
            lanes = [key for key in client.scan_iter("patient-work.boosted*") if client.llen(key)]
        if lanes:
            yield "lanes", f"tasks left in {lanes}"
        for _ in range(12):
            answer = self.ask(self.patient, "/count/")
            if answer.status != 200 or "X-Upright-Fallback" in answer.headers:
                yield "answers", f"/count/ answers {answer.status} {answer.error.get('type', '')}"

    def consumed(self, who: str) -> set[str]:
        """Queues that an instance's workers consume, as these tell it."""
        from celery import Celery

        app = Celery("stage", broker=self.broker.url(), set_as_current=False)
        told = app.control.inspect(timeout=1).active_queues() or {}
        app.close()
        return {queue["name"] for name, queues in told.items() if name.startswith(f"{who}-") for queue in queues}

    def _measured(self) -> bool:
        return all(one["measurements"].get("databases") for one in self.instances("patient"))

    def _watch_is_well(self, service: str) -> bool:
        rows = self.of_service("SELECT failures FROM upright.health_watch WHERE service = %s", service)
        open_ = self.of_service(
            "SELECT 1 FROM upright.recovery WHERE service = %s AND status IN ('queued', 'running')", service
        )
        return not open_ and (not rows or rows[0]["failures"] == 0 or service not in ("hung", "duo", "deploy", "desk"))


def _rows(url: str, query: str, values: tuple[object, ...]) -> list[dict[str, Any]]:
    with psycopg.connect(url, row_factory=dict_row, autocommit=True) as connection:
        cursor = connection.execute(query, values or None)  # pyright: ignore
        return cursor.fetchall() if cursor.description else []
