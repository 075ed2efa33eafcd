"""Platforms: where a service's processes run, and what may be done to them. What people write in `platforms.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from upright.domain.runbook import Edited

Url = Annotated[str, Field(pattern=r"^https?://[^\s/]+")]
ReplicaName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]


class HealthRules(Edited):
    """When a service counts as down though nothing raises an error."""

    interval_s: Annotated[float, Field(ge=0.1, le=3600)] = 10
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 2
    failures: Annotated[int, Field(ge=1, le=100)] = 3
    """Probes in a row that fail before an incident is opened."""
    repeat_s: Annotated[float, Field(ge=1, le=86_400)] = 900
    """After an incident that did not end the outage: how long until the next one is opened."""


class GunicornReplica(Edited):
    """A gunicorn master on this host."""

    name: ReplicaName = "main"
    pidfile: str | None = None
    pid: Annotated[int, Field(ge=2)] | None = None
    health_url: Url | None = None
    check_command: list[str] | Literal[False] | None = None
    """Run before workers are replaced; anything but exit status 0 means that the application doesn't load, and nothing
    is touched. By default the master's own command line with `--check-config`; `false`: no check."""

    @field_validator("check_command")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        if value == []:
            raise ValueError("a command has one word at least; false runs none")
        return value

    @property
    def missing(self) -> str:
        if (self.pidfile is None) == (self.pid is None):
            return "either `pidfile` or `pid` of the gunicorn master is needed"
        return ""


class SupervisorReplica(Edited):
    """A process group of a supervisord, by its XML-RPC."""

    name: ReplicaName = "main"
    url: Annotated[str, Field(pattern=r"^(unix:///|https?://)\S+$")] | None = None
    """`unix:///run/supervisor.sock`, or `http://host:9001`."""
    group: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    user: str | None = None
    password_env: str | None = None
    """Name of the environment variable that holds the password."""
    health_url: Url | None = None

    @property
    def missing(self) -> str:
        return "" if self.url and self.group else "both `url` of the supervisord and `group` are needed"


class ServiceRules(Edited):
    tenant: str = "default"
    environment: str = "production"
    """Of incidents that the health probe opens."""
    max_processes: Annotated[int, Field(ge=1, le=1000)]
    """Of each replica; no recovery goes past it."""
    max_memory_mb: Annotated[int, Field(ge=1)] | None = None
    """A process that holds more than this has grown."""
    health: HealthRules = HealthRules()


Replica = TypeVar("Replica", GunicornReplica, SupervisorReplica)


class GunicornService(GunicornReplica, ServiceRules):
    platform: Literal["gunicorn"]
    replicas: list[GunicornReplica] = Field(default_factory=list[GunicornReplica])
    """More than one master: each with its own address; what stands above them holds where they say nothing."""

    @model_validator(mode="after")
    def _addressed(self) -> GunicornService:
        _check(self.units)
        return self

    @property
    def units(self) -> list[GunicornReplica]:
        own = GunicornReplica.model_construct(
            name=self.name,
            pidfile=self.pidfile,
            pid=self.pid,
            health_url=self.health_url,
            check_command=self.check_command,
        )
        if not self.replicas:
            return [own]
        defaults: dict[str, object] = {"health_url": self.health_url, "check_command": self.check_command}
        return [_filled(one, defaults) for one in self.replicas]


class SupervisorService(SupervisorReplica, ServiceRules):
    platform: Literal["supervisor"]
    replicas: list[SupervisorReplica] = Field(default_factory=list[SupervisorReplica])

    @model_validator(mode="after")
    def _addressed(self) -> SupervisorService:
        _check(self.units)
        return self

    @property
    def units(self) -> list[SupervisorReplica]:
        own = {name: getattr(self, name) for name in SupervisorReplica.model_fields}
        if not self.replicas:
            return [SupervisorReplica.model_construct(**own)]
        return [_filled(one, {key: value for key, value in own.items() if key != "name"}) for one in self.replicas]


PlatformService = GunicornService | SupervisorService
SERVICES: dict[str, type[GunicornService] | type[SupervisorService]] = {
    "gunicorn": GunicornService,
    "supervisor": SupervisorService,
}
"""By the value of `platform`."""


class Platforms(Edited):
    """`platforms.yaml`."""

    services: dict[str, Annotated[PlatformService, Field(discriminator="platform")]] = Field(
        default_factory=dict[str, PlatformService]
    )
    """By the name under which the application reports its errors."""


def _filled(replica: Replica, defaults: dict[str, object]) -> Replica:
    given = {key: value for key, value in defaults.items() if getattr(replica, key) is None}
    return replica.model_copy(update=given)


def _check(units: Sequence[GunicornReplica | SupervisorReplica]) -> None:
    for one in units:
        if one.missing:
            raise ValueError(f"replica {one.name!r}: {one.missing}")
    names = [one.name for one in units]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"each replica has a name of its own; repeated: {', '.join(repeated)}")
