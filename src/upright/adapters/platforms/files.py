"""`platforms.yaml` of a project: where the processes of each service run. Without the file there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from upright.adapters.documents import Document, did_you_mean, read, report
from upright.adapters.platforms.gunicorn import Gunicorn
from upright.adapters.platforms.health import HttpHealth
from upright.adapters.platforms.supervisor import Supervisor
from upright.domain.platform import (
    SERVICES,
    GunicornReplica,
    GunicornService,
    PlatformService,
    SupervisorReplica,
)
from upright.errors import PlatformsError
from upright.services.ports import Platform
from upright.services.running import RunningService

FILE = "platforms.yaml"


def load(project: Path) -> dict[tuple[str, str], RunningService]:
    """By tenant and service. Raises PlatformsError with every problem found."""
    path = project / FILE
    if not path.exists():
        return {}
    document = read(path)
    services = {} if document.problems else _services(document)
    if document.problems:
        raise PlatformsError(document.problems)
    return {(rules.tenant, name): _running(name, rules, project) for name, rules in services.items()}


def _services(document: Document) -> dict[str, PlatformService]:
    data: Any = document.data
    if not isinstance(data, dict):
        document.report((), "it must be of the form `services: {NAME: {platform: …}}`")
        return {}
    for key in data:  # pyright: ignore[reportUnknownVariableType]
        if key != "services":
            document.report((key,), f"unknown key {key!r}{did_you_mean(str(key), ['services'])}")  # pyright: ignore
    given: Any = data.get("services") or {}  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if not isinstance(given, dict):
        document.report(("services",), "it must be of the form `NAME: {platform: …}`")
        return {}
    found: dict[str, PlatformService] = {}
    for name, entry in given.items():  # pyright: ignore[reportUnknownVariableType]
        service = _service(str(name), entry, document)  # pyright: ignore[reportUnknownArgumentType]
        if service is not None:
            found[str(name)] = service  # pyright: ignore[reportUnknownArgumentType]
    return found


def _service(name: str, entry: Any, document: Document) -> PlatformService | None:
    where = ("services", name)
    platform: Any = entry.get("platform") if isinstance(entry, dict) else None  # pyright: ignore
    if not isinstance(platform, str):
        document.report(where, f"'platform' is missing; allowed: {', '.join(SERVICES)}")
        return None
    if platform not in SERVICES:
        document.report((*where, "platform"), f"unknown platform {platform!r}{did_you_mean(platform, SERVICES)}")
        return None
    model = SERVICES[platform]
    try:
        return model.model_validate(entry)
    except ValidationError as error:
        report(error, model, where, document)
        return None


def _running(name: str, rules: PlatformService, project: Path) -> RunningService:
    if isinstance(rules, GunicornService):
        platforms: list[Platform] = [Gunicorn(_placed(one, project), _health(one, rules)) for one in rules.units]
    else:
        platforms = [Supervisor(one, _health(one, rules)) for one in rules.units]
    return RunningService(rules.tenant, name, rules, platforms)


def _placed(replica: GunicornReplica, project: Path) -> GunicornReplica:
    """A relative pidfile is the project's."""
    if replica.pidfile is None:
        return replica
    return replica.model_copy(update={"pidfile": str(project.absolute() / replica.pidfile)})


def _health(replica: GunicornReplica | SupervisorReplica, rules: PlatformService) -> HttpHealth | None:
    if replica.health_url is None:
        return None
    return HttpHealth(replica.health_url, timeout_s=rules.health.timeout_s)
