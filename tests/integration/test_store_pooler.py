"""Behind a transaction pooler: what it would break is not relied upon."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from upright.adapters.bus import Bus
from upright.adapters.store import Database, PostgresStore
from upright.testing.intake import accept


@pytest.fixture
async def pooled_url(database_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """PostgreSQL through a proxy that, as PgBouncer does, tells its clients a process id of its own making."""
    url = make_url(database_url)
    server = f"{url.query['host']}/.s.PGSQL.{url.query.get('port', 5432)}"
    copies: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_unix_connection(server)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, disguise: bool) -> None:
            while data := await source.read(65536):
                key = data.find(b"K\x00\x00\x00") if disguise else -1
                if key >= 0:
                    data = data[: key + 5] + struct.pack("!I", 999_999) + data[key + 9 :]
                    disguise = False
                target.write(data)
                await target.drain()
            target.close()

        for pair in ((reader, upstream, False), (upstream_reader, writer, True)):
            copies.add(asyncio.create_task(copy(*pair)))

    proxy = await asyncio.start_unix_server(serve, tmp_path / ".s.PGSQL.6432")
    yield f"postgresql://{url.username}@/{url.database}?host={tmp_path}&port=6432"
    proxy.close()
    for one in copies:
        one.cancel()
    await asyncio.gather(*copies, return_exceptions=True)


async def test_no_prepared_statement_outlives_its_transaction(pooled_url: str, database_url: str) -> None:
    for url, prepares in ((pooled_url, False), (database_url, True)):
        database = await Database.open(url, announcer=Bus())
        store = PostgresStore(database)
        for _ in range(8):
            await accept(store)
        async with database.engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert (driver.prepare_threshold is not None) is prepares
        await database.close()
