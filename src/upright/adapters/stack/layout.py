"""What the whole stack consists of, with its addresses."""

from __future__ import annotations

import base64
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from upright.adapters.engines import Child, EmbeddedPostgres, EmbeddedPrefect, free_port, require_free
from upright.adapters.engines.locks import DirectoryLock
from upright.adapters.stack.parts import ChildPart, EnginePart, Part, answers_ok
from upright.adapters.stack.shop import ShopAddresses, ShopEngines, shop_parts
from upright.errors import ConfigurationError, EngineFailed


@dataclass(frozen=True)
class Ports:
    """TCP ports; 0 takes a free one."""

    service: int = 8400
    prefect: int = 4200
    shop: int = 8000

    @classmethod
    def any(cls) -> Ports:
        return cls(0, 0, 0)


@dataclass
class Layout:
    """The parts in the order of their start, and where to find them once they are up."""

    data_dir: Path
    parts: list[Part] = field(default_factory=list[Part])
    secret: str = ""
    service_url: str = ""
    prefect_url: str = ""
    """Of the UI; the API is below /api."""
    prefect_api_url: str = ""
    database_url: str = ""
    """The service's own database."""
    shop: ShopAddresses | None = None

    def addresses(self) -> dict[str, str]:
        """For other commands on this machine."""
        return {
            "database_url": self.database_url,
            "prefect_api_url": self.prefect_api_url,
            "service_url": self.service_url,
            "secret": self.secret,
        }

    def for_applications(self) -> dict[str, str]:
        """Environment that connects an instance of the shop with the service."""
        return {
            "UPRIGHT_URL": self.service_url,
            "UPRIGHT_SECRET": self.secret,
            "SHOP_PREFECT_UI_URL": self.prefect_url,
        }


def build(
    data_dir: Path,
    project: Path,
    *,
    ports: Ports,
    shop_dir: Path | None = None,
    database_url: str | None = None,
    prefect_api_url: str | None = None,
    environment: Mapping[str, str] | None = None,
    durable: bool = True,
) -> Layout:
    """Lay the whole stack out. Raises EngineFailed when a port is taken or a directory can't be written, before
    anything starts. `environment` is more of it for the service."""
    service_port = _settle(ports.service, "The Upright service", "--port")
    shop_port = _settle(ports.shop, "The sample shop", "--shop-port") if shop_dir is not None else 0
    layout = engines(
        data_dir,
        prefect_port=ports.prefect,
        database_url=database_url,
        prefect_api_url=prefect_api_url,
        durable=durable,
    )
    layout.secret = _secret(layout.data_dir)
    layout.service_url = f"http://127.0.0.1:{service_port}"
    shop = ShopEngines(layout.data_dir / "shop", durable=durable) if shop_dir is not None else None
    smtp = shop.smtp_url if shop is not None else None
    layout.parts.append(_service_part(layout, project, service_port, smtp, environment or {}))
    if shop_dir is not None and shop is not None:
        layout.shop = ShopAddresses(shop, shop_port)
        layout.parts += shop_parts(shop_dir, shop, layout.shop, environment=layout.for_applications())
    return layout


def engines(
    data_dir: Path,
    *,
    prefect_port: int = 0,
    database_url: str | None = None,
    prefect_api_url: str | None = None,
    durable: bool = True,
) -> Layout:
    """Only what the service stands on: PostgreSQL and a Prefect server, each where no address is given."""
    layout = Layout(_writable(data_dir.absolute()))
    layout.parts.append(_Owner(layout.data_dir))
    if database_url is None or prefect_api_url is None:
        postgres = EmbeddedPostgres(layout.data_dir / "postgres", durable=durable, max_connections=150)
        layout.parts.append(EnginePart(postgres, after=(_Owner.name,), then=lambda: _databases(postgres)))
        database_url = database_url or postgres.url("upright")
        if prefect_api_url is None:
            port = _settle(prefect_port, "The Prefect server", "--prefect-port")
            prefect = EmbeddedPrefect(layout.data_dir / "prefect", postgres.url("prefect"), port=port)
            layout.parts.append(_prefect_part(prefect, postgres.name))
            prefect_api_url = prefect.api_url
    layout.database_url = database_url
    layout.prefect_api_url = prefect_api_url
    layout.prefect_url = prefect_api_url.removesuffix("/").removesuffix("/api")
    return layout


class _Owner:
    """The data directory, held for this process alone."""

    name = "Data directory"
    after: tuple[str, ...] = ()
    timeout_s = 5.0
    child = None
    lasting = False

    def __init__(self, data_dir: Path) -> None:
        self._lock = DirectoryLock(data_dir / "stack", "The stack")

    def launch(self) -> None:
        self._lock.acquire()

    def ready(self) -> bool:
        return True

    def stop(self) -> None:
        self._lock.release()


def _prefect_part(prefect: EmbeddedPrefect, database: str) -> Part:
    def spawn() -> Child:
        prefect.start(wait=False)
        if prefect.child is None:
            raise EngineFailed(f"{prefect.name} did not start.")
        return prefect.child

    return ChildPart(prefect.name, spawn, prefect.healthy, after=(database,), timeout_s=120)


def _service_part(
    layout: Layout,
    project: Path,
    port: int,
    smtp_url: str | None,
    environment: Mapping[str, str],
) -> Part:
    needs = tuple(part.name for part in layout.parts)

    def spawn() -> Child:
        variables = {
            "UPRIGHT_PROJECT": str(project.absolute()),
            "UPRIGHT_DATA_DIR": str(layout.data_dir),
            "UPRIGHT_DATABASE_URL": layout.database_url,
            "UPRIGHT_SECRETS": layout.secret,
            "UPRIGHT_HOST": "127.0.0.1",
            "UPRIGHT_PORT": str(port),
            "PREFECT_API_URL": layout.prefect_api_url,
            "PREFECT_HOME": str(layout.data_dir / "service-prefect"),
            **({"UPRIGHT_SMTP_URL": smtp_url} if smtp_url else {}),
            **environment,
        }
        return Child(
            "Upright service",
            [sys.executable, "-m", "upright.cli", "serve"],
            log=layout.data_dir / "service.log",
            env=os.environ | variables,
        )

    ready = answers_ok(f"{layout.service_url}/readyz")
    return ChildPart("Upright service", spawn, ready, after=needs, timeout_s=90)


def _databases(postgres: EmbeddedPostgres) -> None:
    postgres.ensure_database("upright")
    postgres.ensure_database("prefect")


def _secret(data_dir: Path) -> str:
    """The signing secret of service and shop; made once, since errors in the spool outlive a run."""
    given = os.environ.get("UPRIGHT_SECRETS", "").split(",")[0].strip()
    if given:
        return given
    path = data_dir / "secret"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        made = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(made)
    return made


def _writable(data_dir: Path) -> Path:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        probe = data_dir / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"Can't write to {data_dir}: {error.strerror}. Make it writable for this user, or choose another directory "
            "with --data-dir or UPRIGHT_DATA_DIR."
        ) from error
    return data_dir


def _settle(port: int, what: str, option: str) -> int:
    if port == 0:
        return free_port()
    way_out = f"Stop what listens there, or choose another port: {option} N (0 takes a free one)."
    require_free(port, what=what, way_out=way_out)
    return port
