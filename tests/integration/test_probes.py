"""The service's own checks, against real servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr

from upright.adapters.probes import ServiceProber
from upright.domain.check import HttpCheck, SqlCheck, TcpCheck


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[int]:
    """The port of a server that sends this to everyone."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def response(status: str, body: bytes = b"all is well", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def unused_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def probed(check: Any, **databases: str) -> tuple[str, str]:
    prober = ServiceProber({name: SecretStr(dsn) for name, dsn in databases.items()})
    evidence = await prober.probe(check)
    assert evidence.kind == check.kind
    return evidence.outcome, evidence.detail


@pytest.mark.parametrize(
    ("reply", "wanted", "outcome"),
    [
        (response("200 OK"), {}, ("passed", "answered 200")),
        (response("200 OK"), {"contains": "well"}, ("passed", "answered 200")),
        (response("200 OK"), {"contains": "fine"}, ("failed", "answered 200 without 'fine'")),
        (response("503 Away"), {}, ("failed", "answered 503, not 200")),
        (response("204 Nothing", b""), {"status": 204}, ("passed", "answered 204")),
        (response("302 Found", b"", "Location: http://127.0.0.1:1/"), {}, ("failed", "answered 302, not 200")),
        (b"no http at all\r\n\r\n", {}, ("failed", "did not answer: RemoteProtocolError")),
    ],
)
async def test_an_address_is_asked(reply: bytes, wanted: dict[str, Any], outcome: tuple[str, str]) -> None:
    async with answering(reply) as port:
        check = HttpCheck.model_validate({"kind": "http", "url": f"http://127.0.0.1:{port}/healthz", **wanted})
        assert await probed(check) == outcome


async def test_an_address_where_nobody_listens_has_failed() -> None:
    port = unused_port()
    check = HttpCheck(kind="http", url=f"http://127.0.0.1:{port}/")
    assert await probed(check) == ("failed", "did not answer: ConnectError")
    assert await probed(TcpCheck(kind="tcp", host="127.0.0.1", port=port)) == (
        "failed", "no connection: ConnectionRefusedError",
    )  # fmt: skip


async def test_a_server_that_says_nothing_has_failed_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        outcome, _ = await probed(HttpCheck(kind="http", url=f"http://127.0.0.1:{port}/", timeout_s=0.2))
        assert outcome == "failed"
        assert await probed(TcpCheck(kind="tcp", host="127.0.0.1", port=port)) == ("passed", "a connection was made")


def sql(query: str, expected: Any = True, **fields: Any) -> SqlCheck:
    return SqlCheck(kind="sql", database="shop", runs_in="service", query=query, expected=expected, **fields)


@pytest.mark.parametrize(
    ("check", "outcome"),
    [
        (sql("SELECT 1 < 2"), "passed"),
        (sql("SELECT 1 > 2"), "failed"),
        (sql("SELECT count(*) FROM job", 2), "passed"),
        (sql("SELECT sum(size) FROM job", 3.0), "passed"),
        (sql("SELECT 1", True), "failed"),
        (sql("SELECT 'ready'", "ready"), "passed"),
        (sql("SELECT NULL", None), "passed"),
        (sql("SELECT size FROM job WHERE size > 9"), "failed"),
        (sql("SELECT nothing FROM nowhere"), "inconclusive"),
        (sql("WITH gone AS (DELETE FROM job RETURNING *) SELECT true FROM gone"), "inconclusive"),
        (sql("SELECT pg_sleep(30)", timeout_s=0.2), "failed"),
    ],
    ids=lambda one: one.query if isinstance(one, SqlCheck) else None,
)
async def test_a_query_is_compared_and_changes_nothing(fresh_postgres_url: str, check: SqlCheck, outcome: str) -> None:
    with psycopg.connect(fresh_postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE job AS SELECT * FROM (VALUES (1), (2)) AS made (size)")
        assert (await probed(check, shop=fresh_postgres_url))[0] == outcome
        assert connection.execute("SELECT count(*) FROM job").fetchone() == (2,)


async def test_a_database_that_is_away_has_failed_and_one_that_is_not_named_is_not_asked() -> None:
    away = f"postgresql://nobody@127.0.0.1:{unused_port()}/nothing"
    assert await probed(sql("SELECT true"), shop=away) == ("failed", "the database did not answer: OperationalError")
    assert await probed(sql("SELECT true")) == ("inconclusive", "UPRIGHT_PROBE_DATABASES does not name shop")
