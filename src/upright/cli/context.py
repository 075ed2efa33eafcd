"""Settings of a command, and where a stack that runs here has its parts."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from pydantic import SecretStr

from upright.config import Settings

Project = Annotated[
    Path | None,
    typer.Option("--project", help="Directory with flows, runbooks, models and prefect.yaml. [UPRIGHT_PROJECT or .]"),
]
ADDRESSES = "stack.json"


def settings_for(project: Path | None = None) -> Settings:
    """From the environment; what it leaves open comes from the stack that runs in the data directory, if one does."""
    settings = Settings()
    if project is not None:
        settings = settings.model_copy(update={"project": project})
    running = addresses(settings.data_dir)
    if settings.database_url is None and "database_url" in running:
        settings = settings.model_copy(update={"database_url": SecretStr(running["database_url"])})
    if not settings.secrets and "secret" in running:
        settings = settings.model_copy(update={"secrets": [SecretStr(running["secret"])]})
    service = urlsplit(running.get("service_url", ""))
    if service.hostname and service.port and not settings.model_fields_set & {"host", "port"}:
        settings = settings.model_copy(update={"host": service.hostname, "port": service.port})
    if "prefect_api_url" in running:
        os.environ.setdefault("PREFECT_API_URL", running["prefect_api_url"])
    return settings


def addresses(data_dir: Path) -> dict[str, str]:
    """What `upright up` says of its parts while it runs."""
    try:
        return json.loads((data_dir / ADDRESSES).read_text())
    except (OSError, ValueError):
        return {}


@contextmanager
def announced(data_dir: Path, parts: dict[str, str]) -> Generator[None]:
    """Other commands find the running stack as long as this holds."""
    path = data_dir / ADDRESSES
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(parts, file)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
