"""Settings of the service, from the environment (`UPRIGHT_…`). docs/settings.md lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIN_SECRET_BYTES = 24


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="UPRIGHT_", extra="ignore")

    project: Path = Path()
    """Directory with flows/, runbooks/, models/ and prefect.yaml."""
    data_dir: Path = Path(".upright")
    """Where embedded engines keep their files; unused if both addresses below are given."""
    database_url: SecretStr | None = None
    """postgresql://…; without it an embedded PostgreSQL starts."""
    redis_url: SecretStr | None = None
    """redis://…; without it an embedded redis-server starts where one is needed."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8400
    secrets: Annotated[list[SecretStr], NoDecode] = Field(default_factory=list[SecretStr])
    """Signing secrets of the default tenant (`whsec_…`, at least 24 bytes), separated by commas; any of them is
    accepted, and answers are signed with each. They stay out of the database."""
    tenants: dict[str, list[SecretStr]] = Field(default_factory=dict)
    """More tenants: JSON object of tenant to secrets."""
    tenant_services: dict[str, list[str]] = Field(default_factory=dict)
    """JSON object of tenant to the services it may speak for; a tenant not named here may speak for all its own."""
    max_concurrent_recoveries: Annotated[int, Field(ge=1, le=100)] = 4
    lease_s: Annotated[float, Field(ge=1, le=300)] = 10
    """How long a recovery stays with a runner that gives no sign of life."""
    reconcile_s: Annotated[float, Field(ge=0.1, le=60)] = 1
    instance_ttl_s: Annotated[float, Field(ge=5, le=600)] = 60
    learning: Literal["off", "beta", "on"] = "on"
    """What may score at most: priors alone (the kill switch), the Beta model, or a promoted challenger too."""
    exploration: Annotated[float, Field(ge=0, le=0.05)] = 0.05
    """How often the first two strategies change places where that is allowed; 0: never."""
    escalation_cost_s: Annotated[float, Field(ge=1, le=86_400)] = 120
    """What it costs until a person has seen to an error that nothing repaired."""
    smtp_url: SecretStr | None = None
    """smtp://user:password@host:port[?tls=true&from=…]; used when no agent of the application is alive."""
    alert_recipients: list[str] = Field(default_factory=list[str], repr=False)
    """JSON list; used for services that announce no recipients. A webhook's address is a secret."""
    alert_hosts: Annotated[list[str], NoDecode] = Field(default_factory=lambda: ["hooks.slack.com"])
    """Hosts of webhooks that alerts may be posted to, separated by commas, with a port where it is not 443. The
    addresses come from applications, and must not lead into the service's own network."""
    public_url: str | None = None
    """Where people reach this service in a browser; with the secret below, approvals are asked for by a link too."""
    approval_secret: Annotated[SecretStr | None, Field(min_length=24)] = None
    """Signs links to approvals; known to the service alone."""
    probe_databases: dict[str, SecretStr] = Field(default_factory=dict)
    """JSON object of name to DSN: databases that a runbook's `sql` checks may query, as a role that can only read."""
    work_pool: str = "upright"
    log_json: bool = False

    @field_validator("secrets", "alert_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
