"""Migrations agree with the tables, and replicas that start together don't get in each other's way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import sql
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from upright.adapters.engines import EmbeddedPostgres
from upright.adapters.store import Database, upgrade
from upright.adapters.store.database import address
from upright.adapters.store.migrate import configuration
from upright.adapters.store.tables import SCHEMA, metadata
from upright.errors import ConfigurationError, Unavailable


def test_migrations_make_the_tables(database_url: str) -> None:
    engine = create_engine(address(database_url), poolclass=NullPool)
    options = {
        "version_table_schema": SCHEMA,
        "include_schemas": True,
        "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
        "compare_server_default": True,
    }
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_replicas_that_start_together_take_turns(fresh_postgres_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(upgrade, fresh_postgres_url) for _ in range(4)]:
            done.result(60)
    upgrade(fresh_postgres_url)
    engine = create_engine(address(fresh_postgres_url), poolclass=NullPool)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM upright.alembic_version")).scalar_one() == 1


def test_the_first_migration_can_be_undone(fresh_postgres_url: str) -> None:
    upgrade(fresh_postgres_url)
    engine = create_engine(address(fresh_postgres_url), poolclass=NullPool)
    with engine.begin() as connection:
        command.downgrade(configuration(connection), "base")
        left = connection.execute(
            text("SELECT count(*) FROM pg_class WHERE relnamespace = 'upright'::regnamespace AND relkind = 'r'")
        )
        assert left.scalar_one() == 1  # alembic's own
    upgrade(fresh_postgres_url)


_DATA = """
    INSERT INTO upright.tenant (name) VALUES ('default');
    INSERT INTO upright.incident (id, tenant, service, fingerprint, error_type)
        VALUES ('00000000-0000-0000-0000-000000000001', 'default', 'shop', 'f', 'KeyError');
    INSERT INTO upright.error (id, tenant, service, environment, incident_id, type, message, severity,
                               origin, occurred_at)
        SELECT id, tenant, service, 'production', id, error_type, 'no', 'high', 'middleware', now()
        FROM upright.incident;
    INSERT INTO upright.recovery (id, tenant, incident_id, error_id, fingerprint, service, runbook, severity, status)
        SELECT gen_random_uuid(), tenant, id, id, fingerprint, service, 'one', 'high', 'recovered'
        FROM upright.incident;
    INSERT INTO upright.directive (id, tenant, service, strategy, target, version, scope, recovery_id)
        SELECT gen_random_uuid(), tenant, service, 'pool_increase', 'default', 1, 'process', id FROM upright.recovery;
    INSERT INTO upright.action (recovery_id, position, strategy, verdict)
        SELECT id, 0, 'pool_increase', 'recovered' FROM upright.recovery;
    INSERT INTO upright.audit (tenant, who, what, subject) VALUES ('default', 'service', 'recovery.opened', 'one');
"""
_NEWER = """
    UPDATE upright.recovery SET status = 'relapsed', relapse = 'it came back', relapsed_at = now(), withheld = 'held';
    UPDATE upright.action SET verdict = 'relapsed', propensity = 0.95;
    UPDATE upright.directive SET instances = ARRAY['one'];
    INSERT INTO upright.permit (recovery_id, strategy, tenant, service, runbook)
        SELECT id, 'pool_increase', tenant, service, runbook FROM upright.recovery;
    INSERT INTO upright.hold (tenant, service, fingerprint, reason, recovery_id, until)
        SELECT tenant, service, fingerprint, 'failed', id, now() FROM upright.recovery;
    INSERT INTO upright.approval (id, recovery_id, strategy, expires_at)
        SELECT gen_random_uuid(), id, 'pool_increase', now() FROM upright.recovery;
    INSERT INTO upright.scaling (tenant, service, replica, base, processes, incarnation, recovery_id, expires_at)
        SELECT tenant, service, 'one', 2, 3, '', id, now() FROM upright.recovery;
"""


def test_a_database_with_data_goes_up_and_down_step_by_step(fresh_postgres_url: str) -> None:
    engine = create_engine(address(fresh_postgres_url), poolclass=NullPool)
    upgrade(fresh_postgres_url)
    with engine.begin() as connection:
        command.downgrade(configuration(connection), "0001")
    with engine.begin() as connection:
        connection.execute(text(_DATA))
    for _ in range(2):
        for revision in ("0002", "0003", "0004", "0005", "0006"):
            with engine.begin() as connection:
                command.upgrade(configuration(connection), revision)
        with engine.begin() as connection:
            connection.execute(text(_NEWER))
        for revision in ("0005", "0004", "0003", "0002", "0001"):
            with engine.begin() as connection:
                command.downgrade(configuration(connection), revision)
        with engine.begin() as connection:
            left = connection.execute(text("SELECT r.status, a.verdict FROM upright.recovery r, upright.action a"))
            # What an earlier version can't say is said as the nearest that it can.
            assert left.all() == [("not_recovered", "not_recovered")]
    upgrade(fresh_postgres_url)


@pytest.mark.parametrize("url", ["mysql://localhost/x", "nonsense", ""])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        upgrade(url)


def test_a_user_that_may_not_make_tables_is_told(fresh_postgres_url: str, postgres_server: EmbeddedPostgres) -> None:
    role = f"reader_{uuid4().hex}"
    with psycopg.connect(postgres_server.url(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    url = make_url(fresh_postgres_url).set(username=role, password=None).render_as_string()
    with pytest.raises(ConfigurationError, match=r"does not let this user .* permission denied for database"):
        upgrade(url)


def test_a_database_of_a_newer_version_is_told(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE upright.alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match="by a newer Upright"):
        upgrade(database_url)


async def test_a_database_that_is_not_there() -> None:
    url = "postgresql://postgres:hidden@127.0.0.1:1/none"
    with pytest.raises(Unavailable) as caught:
        upgrade(url)
    assert "hidden" not in str(caught.value)
    with pytest.raises(Unavailable):
        await Database.open(url)
