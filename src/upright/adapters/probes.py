"""Checks that the service makes itself: an address, a port, a query of a database that its settings name."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Literal

import httpx
import psycopg
from pydantic import SecretStr

from upright.domain.check import HttpCheck, SqlCheck, TcpCheck
from upright.domain.verdict import Evidence

MAX_BODY_BYTES = 1024 * 1024

_Seen = tuple[Literal["passed", "failed", "inconclusive"], str, int | None]


class ServiceProber:
    def __init__(self, databases: Mapping[str, SecretStr]) -> None:
        """`databases`: name to DSN."""
        self._databases = databases

    async def probe(self, check: HttpCheck | SqlCheck | TcpCheck) -> Evidence:
        began = time.monotonic()
        try:
            async with asyncio.timeout(check.timeout_s):
                match check:
                    case HttpCheck():
                        outcome, detail, status = await _http(check)
                    case TcpCheck():
                        outcome, detail, status = await _tcp(check)
                    case SqlCheck():
                        outcome, detail, status = await self._sql(check)
        except TimeoutError:
            outcome, detail, status = "failed", f"nothing within {check.timeout_s:g} s", None
        except Exception as error:  # whatever a library makes of an address: nothing was found out
            outcome, detail, status = "inconclusive", f"it could not be made: {type(error).__name__}", None
        took_ms = round((time.monotonic() - began) * 1000, 1)
        return Evidence(kind=check.kind, outcome=outcome, detail=detail, status_code=status, duration_ms=took_ms)

    async def _sql(self, check: SqlCheck) -> _Seen:
        dsn = self._databases.get(check.database)
        if dsn is None:
            return "inconclusive", f"UPRIGHT_PROBE_DATABASES does not name {check.database}", None
        try:
            connection = await psycopg.AsyncConnection.connect(dsn.get_secret_value(), autocommit=True)
            async with connection:
                # Whatever the query calls, it changes nothing, and does not go on when nobody waits for it any more.
                await connection.execute("SET default_transaction_read_only = on")
                milliseconds = max(1, round(check.timeout_s * 1000))
                await connection.execute("SELECT set_config('statement_timeout', %s, false)", [f"{milliseconds}ms"])
                row = await (await connection.execute(check.query.encode())).fetchone()
        except psycopg.OperationalError as error:
            return "failed", f"the database did not answer: {type(error).__name__}", None
        except psycopg.Error as error:
            return "inconclusive", f"the query is not accepted: {type(error).__name__}", None
        if row is None:
            return "failed", "the query found no row", None
        return ("passed", "it is as expected", None) if same(row[0], check.expected) else (
            "failed", "it is not as expected", None,
        )  # fmt: skip


def same(found: object, expected: bool | int | float | str | None) -> bool:
    """As a person who wrote the expected value into a file means it: 1 is not true, and 1 is 1.0."""
    if isinstance(found, bool) or isinstance(expected, bool) or found is None or expected is None:
        return found is expected
    if isinstance(found, int | float | Decimal):
        return not isinstance(expected, str) and float(found) == float(expected)
    return str(found) == str(expected)


async def _http(check: HttpCheck) -> _Seen:
    timeout = httpx.Timeout(check.timeout_s)
    try:
        async with (
            httpx.AsyncClient(follow_redirects=False, timeout=timeout, trust_env=False) as client,
            client.stream("GET", check.url) as response,
        ):
            status = response.status_code
            if status != check.status:
                return "failed", f"answered {status}, not {check.status}", status
            if check.contains and check.contains.encode() not in await _body(response):
                return "failed", f"answered {status} without {check.contains!r}", status
            return "passed", f"answered {status}", status
    except httpx.TransportError as error:
        return "failed", f"did not answer: {type(error).__name__}", None


async def _body(response: httpx.Response) -> bytes:
    found = bytearray()
    async for part in response.aiter_bytes():
        found += part
        if len(found) > MAX_BODY_BYTES:
            break
    return bytes(found)


async def _tcp(check: TcpCheck) -> _Seen:
    try:
        _, writer = await asyncio.open_connection(check.host, check.port)
    except OSError as error:
        return "failed", f"no connection: {type(error).__name__}", None
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return "passed", "a connection was made", None
