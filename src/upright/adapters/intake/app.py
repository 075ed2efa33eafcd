"""The FastAPI application."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

import upright
from upright.adapters.bus import Bus
from upright.adapters.intake import refusals
from upright.adapters.intake.alerts import AlertTestRoute
from upright.adapters.intake.approvals import ApprovalPage
from upright.adapters.intake.errors import ErrorRoutes, Router
from upright.adapters.intake.gate import Gate
from upright.adapters.intake.health import HealthRoutes, Readiness
from upright.adapters.intake.refusals import Refused
from upright.adapters.intake.switch import SwitchRoute
from upright.adapters.intake.sync import SyncRoute
from upright.adapters.store import PostgresStore
from upright.config import Settings
from upright.domain.alert_test import AlertTestAnswer, AlertTestRequest
from upright.domain.answer import Answer
from upright.domain.directive import Results, SyncAnswer, SyncRequest
from upright.domain.event import Event
from upright.domain.switch import SwitchAnswer, SwitchRequest
from upright.services.ports import Dispatch, Launcher, Webhooks

_REFERENCE = "#/components/schemas/{model}"
_BODIES = (Event, Results, SyncRequest, SwitchRequest, AlertTestRequest)

_ABOUT = """Errors of Django applications come in here, and answers, commands and desired state go out.

Every request is signed as [Standard Webhooks](https://www.standardwebhooks.com) describe: `webhook-id`,
`webhook-timestamp` and `webhook-signature` over the raw body, and `upright-tenant` for tenants other than `default`.
Answers carry the same headers, signed the same way."""


def create_app(
    store: PostgresStore,
    dispatch: Dispatch,
    bus: Bus,
    router: Router,
    launcher: Launcher,
    settings: Settings,
    readiness: Readiness,
    webhooks: Webhooks | None = None,
) -> FastAPI:
    """The service's HTTP side. Opens nothing: store and bus are the caller's to open and close; `bus.drain()` lets the
    held requests go before the server stops. Raises ConfigurationError for secrets that are too short."""
    gate = Gate(settings)
    app = FastAPI(
        title="Upright",
        version=upright.__version__,
        description=_ABOUT,
        docs_url="/docs",
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    app.state.store, app.state.dispatch, app.state.bus, app.state.gate = store, dispatch, bus, gate
    refusals.install(app, gate)
    api = APIRouter()
    ErrorRoutes(gate, store, bus, router, launcher).add_to(
        api,
        errors=_documented(Event, Answer, 202, "errors"),
        results=_documented(Results, Answer, 202, "errors"),
        recoveries=_documented(Event, Answer, 202, "errors"),
    )
    SyncRoute(gate, store, bus).add_to(api, **_documented(SyncRequest, SyncAnswer, None, "sync"))
    SwitchRoute(gate, store).add_to(api, **_documented(SwitchRequest, SwitchAnswer, None, "switch"))
    if webhooks is not None:
        AlertTestRoute(gate, webhooks).add_to(api, **_documented(AlertTestRequest, AlertTestAnswer, None, "alerts"))
    ApprovalPage(store, settings).add_to(api)
    HealthRoutes(readiness).add_to(api)
    app.include_router(api)
    app.openapi = lambda: _openapi(app)
    return app


def _documented(body: type[Any], answer: type[Any], pending: int | None, tag: str) -> dict[str, Any]:
    """Bodies are read raw, for their signature, so that the page has to be told of them."""
    responses: dict[int | str, dict[str, Any]] = {
        200: {"model": answer, "description": "The final answer, or a command to carry out"},
        400: {"model": Refused, "description": "Malformed; `field` says where"},
        401: {"model": Refused, "description": "The signature does not hold"},
        403: {"model": Refused, "description": "The secret does not speak for that service"},
        404: {"model": Refused, "description": "No such error"},
        413: {"model": Refused, "description": "Larger than 64 KiB"},
        503: {"model": Refused, "description": "Busy, or without its database; see `Retry-After`"},
    }
    if pending is not None:
        responses[pending] = {"model": answer, "description": "Accepted; no verdict yet"}
    signed = [
        {"name": name, "in": "header", "required": name != "upright-tenant", "schema": {"type": "string"}}
        for name in ("webhook-id", "webhook-timestamp", "webhook-signature", "upright-tenant")
    ]
    schema = {"$ref": _REFERENCE.format(model=body.__name__)}
    return {
        "responses": responses,
        "tags": [tag],
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "parameters": signed,
        },
    }


def _openapi(app: FastAPI) -> dict[str, Any]:
    if not app.openapi_schema:
        page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, definitions = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_REFERENCE)
        schemas = page["components"]["schemas"]
        for name, schema in definitions["$defs"].items():
            schemas.setdefault(name, schema)
        for operation in (one for path in page["paths"].values() for one in path.values()):
            operation.get("responses", {}).pop("422", None)  # ours are 400
        app.openapi_schema = page
    return app.openapi_schema
