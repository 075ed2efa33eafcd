"""Real engines for the Django tests: PostgreSQL and Redis of the test session's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connections

from error_logging import client, desired_state, drain, retry_budget
from error_logging.testing import ScriptedService
from upright.adapters.engines import EmbeddedPostgres, EmbeddedRedis


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The cluster behind the default database."""
    with EmbeddedPostgres(
        tmp_path_factory.mktemp("site") / "postgres", durable=False, name="Site PostgreSQL"
    ) as server:
        yield server


@pytest.fixture(scope="session")
def django_db_modify_db_settings(postgres: EmbeddedPostgres) -> Iterator[None]:
    connections["default"].settings_dict["HOST"] = str(postgres.socket_dir)
    yield
    connections.close_all()
    connections["default"].close_pool()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("site-redis")) as server:
        yield server


@pytest.fixture(autouse=True)
def spool_dir(tmp_path: Path, settings) -> Path:
    """A spool of the test's own."""
    place = tmp_path / "spool"
    settings.UPRIGHT_SPOOL_DIR = str(place)
    return place


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """What a test taught this process about its service, and what waits for delivery, ends with it."""
    yield
    client.reset()
    desired_state.reset()
    drain.drainer.forget()
    retry_budget.renew()


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    """A service that Django's settings name."""
    with ScriptedService() as running, running.connected():
        yield running


@pytest.fixture
def redis_cache(redis_server: EmbeddedRedis, settings) -> str:
    """The address of a cache that works."""
    url = redis_server.url()
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": url}}
    return url
