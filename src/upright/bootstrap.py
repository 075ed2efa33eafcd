"""The one place that wires adapters to ports: for the service, and for flows in a stock Prefect worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future
from uuid import uuid4

from upright.adapters import platforms, runbook_files
from upright.adapters.bus import Bus
from upright.adapters.dispatch import CommandDispatch
from upright.adapters.mail import SmtpMailer
from upright.adapters.models import ModelLibrary
from upright.adapters.probes import ServiceProber
from upright.adapters.slack import SlackWebhooks
from upright.adapters.store import Database, PostgresStore, upgrade
from upright.config import Settings
from upright.errors import ConfigurationError, Unavailable, UprightError
from upright.services.dependencies import Dependencies, provided
from upright.services.learning.estimate import Prior
from upright.services.learning.scorer import Scorer

__all__ = ["Dependencies", "current", "dependencies", "library", "process_name", "serve", "serve_until"]

logger = logging.getLogger("upright")

LEARNING_S = 2.0
"""Between looks at what recoveries have taught."""
DATABASE_PATIENCE_S = 60.0
"""How long a start waits for PostgreSQL."""


def process_name(kind: str = "upright") -> str:
    """Under which leases are taken: of this process alone, also after a restart with the same pid."""
    return f"{kind}@{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:6]}"


@contextlib.asynccontextmanager
async def dependencies(settings: Settings, *, kind: str = "upright") -> AsyncGenerator[Dependencies]:
    """All that a recovery works with, on an up-to-date database. Raises ConfigurationError, Unavailable."""
    url = database_url(settings)
    book = runbook_files.load(settings.project)
    services = platforms.load(settings.project)
    mailer = SmtpMailer(settings.smtp_url.get_secret_value()) if settings.smtp_url is not None else None
    prober = ServiceProber(settings.probe_databases)
    webhooks = SlackWebhooks(settings.alert_hosts)
    bus = Bus(url, reconcile_s=settings.reconcile_s)
    database = await Database.open(url, announcer=bus)
    try:
        store = PostgresStore(database, instance_ttl_s=settings.instance_ttl_s)
        await bus.open()
        dispatch = CommandDispatch(store, bus)
        scorer = Scorer(
            store,
            _models(store, settings, book.priors),
            book.priors,
            learning=settings.learning,
            epsilon=settings.exploration,
            escalation_s=settings.escalation_cost_s,
        )
        name = process_name(kind)
        yield Dependencies(store, dispatch, book, settings, name, mailer, bus, services, scorer, prober, webhooks)
    finally:
        webhooks.close()
        await bus.close()
        await database.close()


@contextlib.asynccontextmanager
async def library(settings: Settings | None = None) -> AsyncGenerator[tuple[ModelLibrary, PostgresStore]]:
    """The versions of models, and the store that they are in: for training and choosing one. Settings are those of the
    warm process, or of the environment, if not given."""
    if settings is None:
        warm = provided()
        settings = warm.settings if warm is not None else Settings()
    priors = runbook_files.load(settings.project).priors
    database = await Database.open(database_url(settings), pool_size=2, timeout_s=60)
    try:
        store = PostgresStore(database, instance_ttl_s=settings.instance_ttl_s)
        yield _models(store, settings, priors), store
    finally:
        await database.close()


def _models(store: PostgresStore, settings: Settings, priors: Mapping[str, Prior]) -> ModelLibrary:
    return ModelLibrary(store, settings.project / "models", priors, escalation_s=settings.escalation_cost_s)


def database_url(settings: Settings) -> str:
    if settings.database_url is None:
        raise ConfigurationError(
            "UPRIGHT_DATABASE_URL is not set; it has the form postgresql://user:password@host/name"
        )
    return settings.database_url.get_secret_value()


@contextlib.asynccontextmanager
async def current() -> AsyncGenerator[Dependencies]:
    """What a flow works with: the warm process's, where it runs in one, else made from the environment for this run
    (a stock worker starts a process for each)."""
    warm = provided()
    if warm is not None:
        yield warm
    else:
        async with dependencies(Settings(), kind="worker") as made:
            if made.scorer is not None:
                with contextlib.suppress(Unavailable):
                    await made.scorer.refresh()
            yield made


async def serve(settings: Settings, ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT (or until this is cancelled), then stop cleanly. `ready` is told the address.

    Needs PREFECT_API_URL in the environment. The service has a thread and an event loop of its own: in the main thread,
    Prefect's engine would put its own SIGTERM handler in place during each run.
    """
    loop, stop, ended = asyncio.get_running_loop(), Future[None](), asyncio.Event()
    failures: list[BaseException] = []

    def request_stop() -> None:
        if not stop.done():
            stop.set_result(None)
        for one in handled:
            loop.remove_signal_handler(one)  # a second signal ends the process as it would by itself

    def work() -> None:
        try:
            asyncio.run(serve_until(settings, stop, ready))
        except BaseException as error:  # whatever it is, whoever waits is to know
            failures.append(error)
        finally:
            loop.call_soon_threadsafe(ended.set)

    handled: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for one in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(one, request_stop)
            handled.append(one)
    thread = threading.Thread(target=work, name="upright", daemon=True)
    thread.start()
    try:
        await ended.wait()
    finally:
        request_stop()
        await ended.wait()
        thread.join()
    if failures:
        raise failures[0]


async def serve_until(settings: Settings, stop: Future[None], ready: Callable[[str], None] | None = None) -> None:
    """The service, on the running loop, until `stop` is done."""
    listener = _listener(settings)
    with contextlib.closing(listener):
        await _bring_up_to_date(database_url(settings))
        runner_settings()
        # Prefect reads its settings when it is imported.
        import uvicorn

        from upright.adapters.intake import create_app
        from upright.adapters.platforms.reverts import Reverts
        from upright.adapters.platforms.watch import Watch
        from upright.adapters.runner.runner import PrefectRunner
        from upright.services.routing import Router

        async with dependencies(settings) as found:
            store, bus = found.store, found.bus
            assert isinstance(store, PostgresStore)  # noqa: S101 (dependencies() has made it)
            runner = PrefectRunner(found, settings.project)

            async def readiness() -> Mapping[str, str]:
                try:
                    await store.ping()
                    database = ""
                except Unavailable as error:
                    database = str(error)
                return {"postgresql": database, "prefect": runner.problem}

            router, services = Router(found.book), found.platforms
            app = create_app(store, found.dispatch, bus, router, runner, settings, readiness, found.webhooks)
            reverts = Reverts(store, services, found.runner)
            watch = Watch(store, store, router, runner, services.values(), found.runner)
            config = uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5, server_header=False
            )
            server = uvicorn.Server(config)
            # Errors are taken, and wait, while Prefect is still coming up.
            async with runner.running(wait=False) as working:
                serving = asyncio.create_task(server.serve(sockets=[listener]))
                stopping = asyncio.wrap_future(stop)
                assert found.scorer is not None  # noqa: S101 (dependencies() has made it)
                learning = asyncio.create_task(found.scorer.follow(LEARNING_S))
                announced = asyncio.create_task(_announce(runner.registered, listener, ready))
                looking = [asyncio.create_task(one.run()) for one in (reverts, watch)]
                await asyncio.wait({serving, stopping, working}, return_when=asyncio.FIRST_COMPLETED)
                announced.cancel()
                learning.cancel()
                for task in looking:
                    task.cancel()
                await asyncio.gather(*looking, return_exceptions=True)
                bus.drain()
                server.should_exit = True
                await serving
                if working.done():
                    await working


async def _announce(registered: asyncio.Event, listener: socket.socket, ready: Callable[[str], None] | None) -> None:
    await registered.wait()
    host, port = listener.getsockname()[:2]
    logger.info("Serving on http://%s:%s", host, port)
    if ready is not None:
        ready(f"http://{host}:{port}")


def runner_settings() -> None:
    """What we want of Prefect's client, where the environment doesn't say otherwise."""
    from upright.adapters.runner.prefect_settings import CLIENT_SETTINGS, environment

    for name, value in environment(CLIENT_SETTINGS).items():
        os.environ.setdefault(name, value)
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigurationError("PREFECT_API_URL is not set; it has the form http://127.0.0.1:4200/api")


def _listener(settings: Settings) -> socket.socket:
    """Bound first: an address that is taken is to be told before anything else starts."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=256)
    except OSError as error:
        raise ConfigurationError(
            f"Can't listen on {settings.host}:{settings.port}: {error.strerror}. Set UPRIGHT_HOST or UPRIGHT_PORT."
        ) from error


async def _bring_up_to_date(url: str) -> None:
    end = asyncio.get_running_loop().time() + DATABASE_PATIENCE_S
    while True:
        try:
            return await asyncio.to_thread(upgrade, url)
        except Unavailable as error:
            if asyncio.get_running_loop().time() >= end:
                raise UprightError(f"{error} Is UPRIGHT_DATABASE_URL right, and PostgreSQL running?") from error
            logger.warning("%s Trying again.", error)
            await asyncio.sleep(1)
