"""A migrated database for each test, and the store and intake on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from upright.adapters.bus import Bus
from upright.adapters.dispatch import CommandDispatch
from upright.adapters.engines import EmbeddedPostgres
from upright.adapters.store import Database, PostgresStore, upgrade
from upright.testing.intake import Replica, Service, service_on


@pytest.fixture(scope="session")
def migrated_template(postgres_server: EmbeddedPostgres) -> str:
    """Name of a database with our tables, to copy."""
    name = f"template_{uuid4().hex}"
    upgrade(postgres_server.ensure_database(name))
    return name


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres, migrated_template: str) -> str:
    name = f"test_{uuid4().hex}"
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(migrated_template))
        )
    return postgres_server.url(name)


@pytest.fixture
async def replica_of() -> AsyncIterator[Callable[..., Awaitable[Replica]]]:
    """Makes replicas: each with a pool, a bus and a store of its own."""
    made: list[Replica] = []

    async def make(url: str, *, listen: bool = True, instance_ttl_s: float = 60) -> Replica:
        bus = Bus(url if listen else None, reconcile_s=0.2)
        await bus.open()
        database = await Database.open(url, announcer=bus)
        store = PostgresStore(database, instance_ttl_s=instance_ttl_s)
        made.append(Replica(bus, database, store, CommandDispatch(store, bus)))
        return made[-1]

    yield make
    for one in made:
        await one.bus.close()
        await one.database.close()


@pytest.fixture
async def replica(replica_of: Callable[..., Awaitable[Replica]], database_url: str) -> Replica:
    return await replica_of(database_url)


@pytest.fixture
def store(replica: Replica) -> PostgresStore:
    return replica.store


@pytest.fixture
async def service(replica: Replica) -> AsyncIterator[Service]:
    made = service_on(replica)
    yield made
    await made.sender.http.aclose()
