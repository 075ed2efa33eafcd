"""What can't be taken is refused with a reason, over real HTTP too, and never with a traceback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
import uvicorn
from pydantic import SecretStr
from sqlalchemy import make_url

from upright.adapters.engines import EmbeddedPostgres
from upright.adapters.intake import create_app
from upright.domain.directive import SyncRequest
from upright.domain.verdict import Status
from upright.errors import ConfigurationError
from upright.testing.intake import (
    FixedRouter,
    Replica,
    Sender,
    Service,
    an_event,
    eventually,
    service_on,
    settings,
    waiting,
)

OTHER_SECRET = "whsec_" + "b" * 40


def refused(response: httpx.Response, status: int, code: str, field: str | None = None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["code"], error["field"]) == (code, field), error
    assert error["message"]
    assert "Traceback" not in response.text


def changed(**changes: Any) -> dict[str, Any]:
    return {**an_event().model_dump(mode="json"), **changes}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'{"a": "\x00"}', None),
        (b"[" * 5000, None),
        (changed(error_id="no"), "error_id"),
        (changed(service=""), "service"),
        (changed(service=7), "service"),
        (changed(age_ms=-1), "age_ms"),
        (changed(occurred_at="yesterday"), "occurred_at"),
        (changed(origin="elsewhere"), "origin"),
        (changed(schema_version=99), "schema_version"),
        (changed(error={"type": "E", "classes": [[1]]}), "error.classes.0.0"),
        (changed(waiter={"budget_ms": 10**9}), "waiter.budget_ms"),
        ({"service": "shop"}, "error_id"),
    ],
)
async def test_malformed_events(service: Service, body: Any, field: str | None) -> None:
    refused(await service.sender.post("/v1/errors", body), 400, "malformed", field)
    assert service.launcher.submitted == []


@pytest.mark.parametrize("wait_ms", ["-1", "60001", "soon", "1e3", ""])
async def test_malformed_waits(service: Service, wait_ms: str) -> None:
    refused(
        await service.sender.post("/v1/errors", an_event(), verify=False, wait_ms=wait_ms), 400, "malformed", "wait_ms"
    )


async def test_malformed_addresses(service: Service) -> None:
    post = service.sender.post
    refused(await post("/v1/errors/7/results", {}, verify=False), 400, "malformed", "error_id")
    refused(await post(f"/v1/errors/{uuid4()}/recoveries", an_event()), 400, "malformed", "error_id")
    refused(await post("/v1/nothing", {}, verify=False), 404, "not_found")
    refused(await service.sender.http.get("/v1/errors"), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "value",
    ["a\x00b", "\ud800", "\U0001f600" * 3, "x" * 4000, "';--", "%s %(a)s :name"],
    ids=["nul", "surrogate", "emoji", "long", "quote", "format"],
)
async def test_odd_text_is_stored_or_refused(service: Service, value: str) -> None:
    body = json.dumps(changed(error={"type": "E", "message": value}, context={value[:9]: value}))
    response = await service.sender.post("/v1/errors", body)
    assert response.status_code == (400 if value == "\ud800" else 202), response.text


@pytest.mark.parametrize("number", ["1e400", "-0.0", "9" * 400, "NaN", "Infinity"])
async def test_odd_numbers_are_stored_or_refused(service: Service, number: str) -> None:
    body = json.dumps(changed(measurements={"a": "@"})).replace('"@"', number)
    assert (await service.sender.post("/v1/errors", body)).status_code in (202, 400)


async def test_deep_nesting_is_stored_or_refused(service: Service) -> None:
    for depth in (50, 120, 190, 250, 5000):
        body = json.dumps(changed()).replace('"context": {}', '"context": {"a": ' + "[" * depth + "]" * depth + "}")
        response = await service.sender.post("/v1/errors", body)
        assert response.status_code in (202, 400), (depth, response.text)


async def test_extreme_times_are_stored(service: Service) -> None:
    for when in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00"):
        assert (
            await service.sender.post("/v1/errors", changed(error_id=str(uuid4()), occurred_at=when))
        ).status_code == 202
    assert len(await service.store.errors()) == 3


async def test_numbers_beyond_the_database_are_stored(service: Service) -> None:
    assert (await service.sender.post("/v1/errors", changed(age_ms=10**30, desired_version=10**30))).status_code == 202
    body = SyncRequest(service="shop", instance="a", hold_ms=0).model_dump(mode="json")
    acknowledged = {"directive_id": str(uuid4()), "version": 10**30, "status": "applied"}
    assert (await service.sender.post("/v1/sync", {**body, "acknowledgements": [acknowledged]})).status_code == 200
    over = {**body, "desired_version": 10**30}
    assert (await service.sender.post("/v1/sync", over)).status_code == 200


async def test_signatures_that_do_not_hold(service: Service) -> None:
    raw = an_event().model_dump_json().encode()
    http, sign = service.sender.http, service.sender.sign
    good = sign(raw, "d1")
    stale = sign(raw, "d1", datetime.now(UTC) - timedelta(minutes=6))
    early = sign(raw, "d1", datetime.now(UTC) + timedelta(minutes=6))
    forged = Sender(http, OTHER_SECRET).sign(raw, "d1")
    broken: list[dict[str, str]] = [{}, stale, early, forged]
    for name, values in {
        "webhook-id": ["", "d2", "x" * 300, "d\u00e9"],
        "webhook-timestamp": ["", "now", "nan", "1e400", "-1"],
        "webhook-signature": [
            "",
            "v1",
            "v1,",
            "v1,!!",
            "v2,abc",
            "v1,\u00e9",
            "v1,a v1,b,c",
            good["webhook-signature"][3:],
        ],
        "upright-tenant": ["nobody", ""],
    }.items():
        broken += [{**good, name: value} for value in values]
    for headers in broken:
        latin = {name: value.encode("latin-1") for name, value in headers.items()}
        refused(await http.post("/v1/errors", content=raw, headers=latin), 401, "signature")
    refused(await http.post("/v1/errors", content=raw + b" ", headers=good), 401, "signature")
    refused(await http.post("/v1/errors", content=b"\xff\xfe", headers=good), 401, "signature")
    assert (await http.post("/v1/errors", content=raw, headers=good)).status_code == 202


async def test_secrets_rotate(replica: Replica) -> None:
    service = service_on(replica, secrets=[SecretStr(OTHER_SECRET), SecretStr("whsec_" + "c" * 40)])
    for secret in (OTHER_SECRET, "whsec_" + "c" * 40):
        service.sender.secret = secret
        assert (await service.sender.post("/v1/errors", an_event())).status_code == 202
    # Several signatures in one header, one of which holds.
    raw = an_event().model_dump_json().encode()
    good = service.sender.sign(raw, "d1")
    several = {**good, "webhook-signature": "v1,AAAA v9,zzz " + good["webhook-signature"]}
    assert (await service.sender.http.post("/v1/errors", content=raw, headers=several)).status_code == 202
    await service.sender.http.aclose()


async def test_a_tenant_speaks_for_its_own_services(replica: Replica) -> None:
    service = service_on(replica, tenants={"other": [OTHER_SECRET]}, tenant_services={"other": ["billing"]})
    service.sender.secret, service.sender.tenant = OTHER_SECRET, "other"
    refused(await service.sender.post("/v1/errors", an_event(service="shop")), 403, "foreign_service")
    sync = SyncRequest(service="shop", instance="a", hold_ms=0)
    refused(await service.sender.post("/v1/sync", sync), 403, "foreign_service")
    assert (await service.sender.post("/v1/errors", an_event(service="billing"))).status_code == 202
    service.sender.tenant = None
    refused(await service.sender.post("/v1/errors", an_event(), verify=False), 401, "signature")
    await service.sender.http.aclose()


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_YQ==", "secret", "whsec_***", "whsec_" + "YWFh" * 7 + "Y"])
def test_weak_secrets_are_refused_at_start(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="24 bytes"):
        create_app(*[None] * 5, settings(secrets=[SecretStr(secret)]), None)  # type: ignore[arg-type]


async def test_without_its_database_the_service_is_busy_until_it_is_back(
    service: Service, postgres_server: EmbeddedPostgres, database_url: str
) -> None:
    assert (await service.sender.post("/v1/errors", an_event())).status_code == 202
    name = make_url(database_url).database
    with psycopg.connect(postgres_server.url(), autocommit=True) as admin:
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        response = await service.sender.post("/v1/errors", an_event())
        refused(response, 503, "unavailable")
        assert int(response.headers["retry-after"]) > 0
        admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    assert (await service.sender.post("/v1/errors", an_event())).status_code == 202


async def test_health_and_readiness(service: Service) -> None:
    http = service.sender.http
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "parts": {"database": "ok"}})
    service.problems["prefect"] = "does not answer"
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()["parts"]["prefect"]) == (503, "does not answer")


async def test_the_openapi_page_describes_every_message(service: Service) -> None:
    page = (await service.sender.http.get("/openapi.json")).json()
    assert set(page["paths"]) == {
        "/v1/errors",
        "/v1/errors/{error_id}/results",
        "/v1/errors/{error_id}/recoveries",
        "/v1/sync",
        "/v1/switch",
        "/v1/alerts/test",
        "/healthz",
        "/readyz",
    }
    body = page["paths"]["/v1/errors"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Event"}
    wanted = {"Event", "Results", "SyncRequest", "Answer", "SyncAnswer", "Directive", "Command", "Refused", "Waiter"}
    assert wanted <= set(page["components"]["schemas"])
    references = set(_references(page))
    assert all(one.removeprefix("#/components/schemas/") in page["components"]["schemas"] for one in references)
    assert (await service.sender.http.get("/docs")).status_code == 200


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [one for item in value.values() for one in _references(item)]
    return [one for item in value for one in _references(item)] if isinstance(value, list) else []


@pytest.fixture
async def served(replica: Replica) -> AsyncIterator[Service]:
    """The intake under uvicorn on a free port."""
    service = service_on(replica)
    await service.sender.http.aclose()
    server = uvicorn.Server(uvicorn.Config(service.app, port=0, log_level="critical", lifespan="off"))
    running = asyncio.create_task(server.serve())

    async def started() -> bool:
        return server.started

    await eventually(started)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        service.sender = Sender(http)
        yield service
    replica.bus.drain()
    server.should_exit = True
    await running


async def test_a_failure_of_ours_is_told_without_its_traceback(
    served: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: FixedRouter, event: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(FixedRouter, "route", broken)
    response = await served.sender.post("/v1/errors", an_event())
    refused(response, 500, "internal")
    assert "secret detail" not in response.text


async def test_too_large_a_body(served: Service) -> None:
    large = json.dumps(changed(context={"a": "x" * 66_000})).encode()
    refused(await served.sender.post("/v1/errors", large, verify=False), 413, "too_large")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    refused(await served.sender.post("/v1/errors", b"{}", content=chunks(), verify=False), 413, "too_large")
    just = json.dumps(changed()).encode()
    just += b" " * (64 * 1024 - len(just))
    assert (await served.sender.post("/v1/errors", just)).status_code == 202
    refused(await served.sender.post("/v1/errors", just + b" ", verify=False), 413, "too_large")


async def test_a_client_that_goes_away_waits_no_more(served: Service) -> None:
    event = waiting()
    held = asyncio.create_task(served.sender.post("/v1/errors", event, wait_ms=60_000))
    recovery = await served.running()
    assert await served.store.waiter_present(event.error_id)
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)

    async def gone() -> bool:
        return not await served.store.waiter_present(event.error_id)

    await eventually(gone)
    await served.store.conclude(recovery.id, epoch=recovery.epoch, status=Status.UNKNOWN, message="", explanation={})
    assert len(await served.store.undelivered_outcomes("default", "shop")) == 1


async def test_a_process_that_goes_away_is_gone(served: Service) -> None:
    sync = SyncRequest(service="shop", instance="a", hold_ms=60_000)
    held = asyncio.create_task(served.sender.post("/v1/sync", sync))

    async def live() -> bool:
        return bool(await served.store.live_instances("default", "shop"))

    async def gone() -> bool:
        return not await live()

    await eventually(live)
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    await eventually(gone)
