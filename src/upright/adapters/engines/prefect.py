"""A Prefect server as a child: API, UI and background services in one process, on a PostgreSQL database."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from upright.adapters.engines.child import Child
from upright.adapters.engines.ports import free_port, require_free
from upright.adapters.runner.prefect_settings import SERVER_SETTINGS, environment
from upright.errors import EngineFailed


class EmbeddedPrefect:
    def __init__(
        self,
        data_dir: Path,
        database_url: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        settings: Mapping[str, str] | None = None,
        name: str = "Prefect server",
    ) -> None:
        """`database_url` is postgresql://… (any driver: asyncpg is put in its place); `port` 0 takes a free one;
        `settings` are more of Prefect's variables."""
        self.data_dir = data_dir.absolute()
        self.database_url = "postgresql+asyncpg://" + database_url.partition("://")[2]
        self.host = host
        self.port = port
        self.settings = dict(settings or {})
        self.name = name
        self._child: Child | None = None

    def __enter__(self) -> EmbeddedPrefect:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def child(self) -> Child | None:
        return self._child

    @property
    def ui_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def api_url(self) -> str:
        return f"{self.ui_url}/api"

    def start(self, *, wait: bool = True) -> None:
        """Start, and wait until the API is healthy (migrations of a fresh database take some seconds). Raises
        EngineFailed with what to do."""
        if self.port:
            way_out = "Stop what listens there, choose another port, or set PREFECT_API_URL if that is your Prefect."
            require_free(self.port, what=self.name, way_out=way_out, host=self.host)
        else:
            self.port = free_port(self.host)
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EngineFailed(f"{self.name} can't use {self.data_dir}: {error.strerror}.") from error
        # What `prefect server start --background` runs, but as our own child.
        command = [
            *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
            *("--host", self.host, "--port", str(self.port), "--log-level", "warning"),
            *("--timeout-keep-alive", "5", "--timeout-graceful-shutdown", "3"),
        ]
        self._child = Child(
            self.name,
            command,
            log=self.data_dir.with_name(self.data_dir.name + ".log"),
            env=self._environment(),
            cwd=self.data_dir,  # no .env or prefect.toml of somebody else
        )
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout_s: float = 120) -> None:
        if self._child is None:
            raise EngineFailed(f"{self.name} was not started.")
        self._child.wait_ready(self.healthy, timeout_s=timeout_s)

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_API_")}
        return {
            "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
            **environment(SERVER_SETTINGS),
            **inherited,
            "PREFECT_HOME": str(self.data_dir),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database_url,
            "PREFECT_SERVER_API_HOST": self.host,
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_SERVER_UI_API_URL": self.api_url,
            # The UI is unpacked at start; a wheel's directory may be read-only.
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(self.data_dir / "ui"),
            "PREFECT__SERVER_FINAL": "1",
            **self.settings,
        }

    def healthy(self) -> bool:
        """Whether the API answers and has its database."""
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=2) as answer:  # noqa: S310 - our own http
                return answer.status == 200 and answer.read().strip() == b"true"
        except (urllib.error.URLError, OSError):
            return False
