"""Real engines for a test session: started when first asked for, gone with the session, also if it is killed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from upright.adapters.engines import EmbeddedPostgres, EmbeddedPrefect, EmbeddedRedis


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """The session's cluster."""
    with EmbeddedPostgres(_engines(tmp_path_factory) / "postgres", durable=False, max_connections=200) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres_server: EmbeddedPostgres) -> str:
    """A database of the session's own, empty at its start: postgresql://… ."""
    return postgres_server.ensure_database("session")


@pytest.fixture
def fresh_postgres_url(postgres_server: EmbeddedPostgres) -> str:
    """An empty database of this test's own."""
    return postgres_server.ensure_database(f"test_{uuid4().hex}")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedRedis(_engines(tmp_path_factory) / "redis") as server:
        yield server.url()


@pytest.fixture(scope="session")
def prefect_server(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: EmbeddedPostgres
) -> Iterator[EmbeddedPrefect]:
    """A real Prefect server on PostgreSQL; PREFECT_API_URL and PREFECT_HOME point to it for the session."""
    home = _engines(tmp_path_factory) / "prefect"
    database = postgres_server.ensure_database(f"prefect_{uuid4().hex}")
    with EmbeddedPrefect(home, database) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", server.api_url)
        patch.setenv("PREFECT_HOME", str(home))
        patch.setenv("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
        _reread_prefect_settings()
        yield server
    _reread_prefect_settings()


def _engines(factory: pytest.TempPathFactory) -> Path:
    return factory.getbasetemp() / f"engines-{os.getpid()}"


def _reread_prefect_settings() -> None:
    """Prefect reads its settings once, at import, which an earlier test may have done."""
    if "prefect" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
