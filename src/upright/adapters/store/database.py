"""The connection to PostgreSQL: engine, transactions, and what is announced when one commits."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import psycopg
from sqlalchemy import URL, TextClause, make_url, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from upright.errors import ConfigurationError, Unavailable

CHANNEL = "upright"
"""Channel of the notifications; their payload is the node that sent it, a space and a topic."""

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Row = Mapping[str, Any]

_NOTIFY = text("SELECT pg_notify(:channel, :node || ' ' || topic) FROM unnest(CAST(:topics AS text[])) AS topic")


class Announcer(Protocol):
    @property
    def node(self) -> str:
        """Names this process in its notifications, so that it needn't heed its own."""
        ...

    def wake(self, topic: str) -> None:
        """Wake everyone in this process who waits for the topic."""
        ...


class Transaction:
    """What a unit of work may do. Rows come back as mappings, JSON parsed."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self.topics: list[str] = []

    async def rows(self, statement: TextClause, **parameters: object) -> Sequence[Row]:
        result = await self._connection.execute(statement, parameters)
        return result.mappings().all()  # pyright: ignore[reportReturnType]  # RowMapping has str keys for text()

    async def row(self, statement: TextClause, **parameters: object) -> Row | None:
        found = await self.rows(statement, **parameters)
        return found[0] if found else None

    async def run(self, statement: TextClause, **parameters: object) -> int:
        """Rows that were changed."""
        return (await self._connection.execute(statement, parameters)).rowcount

    def announce(self, *topics: str) -> None:
        """Say, when this commits, that there is news under these topics."""
        self.topics += [topic for topic in topics if topic not in self.topics]


class Database:
    """One pool of connections. None is ever held while a request waits for news."""

    def __init__(
        self, url: str, *, announcer: Announcer | None = None, pool_size: int = 8, timeout_s: float = 10
    ) -> None:
        self.url = address(url)
        self.announcer = announcer
        self._pool_size = pool_size
        self._timeout_s = timeout_s
        self._engine: AsyncEngine | None = None

    @classmethod
    async def open(
        cls, url: str, *, announcer: Announcer | None = None, pool_size: int = 8, timeout_s: float = 10
    ) -> Database:
        """Connect. `timeout_s` bounds every transaction, in seconds. Raises Unavailable."""
        database = cls(url, announcer=announcer, pool_size=pool_size, timeout_s=timeout_s)
        await database.connect()
        return database

    async def connect(self) -> None:
        arguments: dict[str, object] = {"connect_timeout": 5}
        if await self._behind_pooler():
            # A pooler may give the next transaction another backend, which knows none of our prepared statements.
            arguments["prepare_threshold"] = None
        self._engine = create_async_engine(
            self.url,
            connect_args=arguments,
            pool_size=self._pool_size,
            max_overflow=self._pool_size,
            pool_timeout=self._timeout_s,
            pool_use_lifo=True,
        )

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    @property
    def engine(self) -> AsyncEngine:
        if self._engine is None:
            raise Unavailable("The database is not open.")
        return self._engine

    async def run(self, work: Callable[[Transaction], Awaitable[Result]]) -> Result:
        """Do it in one transaction. Raises Unavailable where the database doesn't answer.

        Where the connection was lost it is done once more: every unit of work here is idempotent, and a restart of
        PostgreSQL leaves dead connections in the pool.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await self._attempt(work)
                except DBAPIError as error:
                    if not error.connection_invalidated:
                        raise
                    log.warning("The connection to PostgreSQL was lost; trying again.")
                    return await self._attempt(work)
        except (OperationalError, InterfaceError, PoolTimeout, TimeoutError, OSError) as error:
            raise Unavailable("PostgreSQL does not answer.") from error
        except ProgrammingError as error:
            if not isinstance(error.orig, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
                raise
            raise ConfigurationError(
                "The database has no tables of Upright's, or older ones; `upright serve` brings them up to date."
            ) from error

    async def _attempt(self, work: Callable[[Transaction], Awaitable[Result]]) -> Result:
        async with self.engine.begin() as connection:
            transaction = Transaction(connection)
            result = await work(transaction)
            if transaction.topics:
                node = "" if self.announcer is None else self.announcer.node
                await connection.execute(_NOTIFY, {"channel": CHANNEL, "node": node, "topics": transaction.topics})
        if self.announcer is not None:
            for topic in transaction.topics:
                self.announcer.wake(topic)
        return result

    async def ping(self) -> None:
        """Raises Unavailable."""
        await self.run(lambda tx: tx.row(text("SELECT 1")))

    async def _behind_pooler(self) -> bool:
        """A pooler tells its client a process id of its own making."""
        try:
            async with await psycopg.AsyncConnection.connect(
                libpq_address(self.url), autocommit=True, connect_timeout=5
            ) as connection:
                found = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
                return found is not None and found[0] != connection.info.backend_pid
        except psycopg.OperationalError as error:
            raise Unavailable("PostgreSQL can't be reached.") from error


def address(url: str) -> URL:
    """The address with our driver. Raises ConfigurationError."""
    try:
        parsed = make_url(url)
    except Exception:
        # Not chained: the cause's text holds the address, and with it a password.
        raise ConfigurationError("The database address is not a URL like postgresql://user@host/name.") from None
    if parsed.drivername.partition("+")[0] not in ("postgresql", "postgres"):
        raise ConfigurationError(f"The database must be PostgreSQL (postgresql://…), not {parsed.drivername}.")
    return parsed.set(drivername="postgresql+psycopg")


def libpq_address(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def as_json(value: object) -> str:
    """JSON text for a jsonb parameter. PostgreSQL takes neither NUL nor numbers that are not finite."""
    return json.dumps(_storable(value), separators=(",", ":"), default=str)


def _storable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key).replace("\x00", "\ufffd"): _storable(item) for key, item in value.items()}  # pyright: ignore
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]  # pyright: ignore
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd")
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
