"""Bring a database's tables up to date."""

from __future__ import annotations

from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool

from upright.adapters.store.database import address
from upright.adapters.store.tables import SCHEMA
from upright.errors import ConfigurationError, Unavailable

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x75707269676874
"""Advisory lock: replicas that start together take turns."""


def upgrade(url: str, revision: str = "head") -> None:
    """Apply the migrations that are missing. Blocks; call it from a thread in an event loop. Raises Unavailable.

    All of it is one transaction, and the lock ends with it: it holds behind a transaction pooler too, and a migration
    that fails leaves nothing behind.
    """
    engine = create_engine(address(url), poolclass=NullPool, connect_args={"connect_timeout": 5})
    try:
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
            command.upgrade(configuration(connection), revision)
    except OperationalError as error:
        raise Unavailable("PostgreSQL can't be reached to bring its tables up to date.") from error
    except ProgrammingError as error:
        if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            raise
        raise ConfigurationError(
            f"PostgreSQL does not let this user make Upright's tables: {error.orig.diag.message_primary}. "
            "`upright doctor` says what to grant."
        ) from error
    except CommandError as error:
        raise ConfigurationError(
            f"The database was brought up to date by a newer Upright ({error}); run that one, or a newer one still."
        ) from error
    finally:
        engine.dispose()


def configuration(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
