"""The sample shop's parts: an application with engines of its own, so that breaking it breaks nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from upright.adapters.engines import Child, EmbeddedPostgres, EmbeddedRedis, free_port, listening
from upright.adapters.stack.parts import ChildPart, EnginePart, Part, TaskPart, answers_ok

DATABASE = "shop"
MAX_CONNECTIONS = 60


class ShopEngines:
    """PostgreSQL, Redis, a mailbox and the flaky carrier; shared by every instance of the shop."""

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        self.data_dir = data_dir
        self.postgres = EmbeddedPostgres(
            data_dir / "postgres",
            max_connections=MAX_CONNECTIONS,
            durable=durable,
            name="Shop PostgreSQL",
        )
        self.redis = EmbeddedRedis(data_dir / "redis", name="Shop Redis")
        self.smtp_port = free_port()
        self.upstream_port = free_port()

    @property
    def smtp_url(self) -> str:
        return f"smtp://127.0.0.1:{self.smtp_port}?from=upright@shop.example"

    @property
    def mailbox(self) -> Path:
        """A Maildir of everything that was sent."""
        return self.data_dir / "mail"

    @property
    def upstream_url(self) -> str:
        return f"http://127.0.0.1:{self.upstream_port}"

    def environment(self) -> dict[str, str]:
        """The shop's settings that name its engines; once they are up."""
        return {
            "SHOP_DB_HOST": str(self.postgres.socket_dir),
            "SHOP_DB_NAME": DATABASE,
            "SHOP_REDIS_URL": self.redis.url(),
            "SHOP_UPSTREAM_URL": self.upstream_url,
            "SHOP_SMTP_PORT": str(self.smtp_port),
        }


@dataclass(frozen=True)
class ShopAddresses:
    engines: ShopEngines
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database_url(self) -> str:
        return self.engines.postgres.url(DATABASE)


def shop_parts(
    shop_dir: Path, engines: ShopEngines, addresses: ShopAddresses, *, environment: Mapping[str, str]
) -> list[Part]:
    """Engines, migrations and the shop itself; `environment` is what connects it with the service."""
    data_dir = engines.data_dir
    carrier = [sys.executable, shop_dir / "upstream.py", str(engines.upstream_port)]
    smtp = [sys.executable, "-m", "aiosmtpd", "-n", "-l", f"127.0.0.1:{engines.smtp_port}"]
    smtp += ["-c", "aiosmtpd.handlers.Mailbox", engines.mailbox]

    def postgres_ready() -> None:
        engines.postgres.ensure_database(DATABASE)

    def migrate() -> Child:
        command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
        return Child(
            "Shop tables",
            command,
            log=data_dir / "migrate.log",
            cwd=shop_dir,
            env=shop_environment(engines, {**environment, "SHOP_STATEMENT_TIMEOUT_MS": "60000"}),
        )

    return [
        EnginePart(engines.postgres, after=("Data directory",), then=postgres_ready),
        EnginePart(engines.redis, after=("Data directory",)),
        ChildPart(
            "Shop mailbox",
            lambda: Child("Shop mailbox", smtp, log=data_dir / "smtp.log"),
            lambda: listening(engines.smtp_port),
            after=("Data directory",),
        ),
        ChildPart(
            "Shop carrier",
            lambda: Child("Shop carrier", carrier, log=data_dir / "carrier.log"),
            answers_ok(f"{engines.upstream_url}/healthz"),
            after=("Data directory",),
        ),
        TaskPart("Shop tables", migrate, after=("Shop PostgreSQL",)),
        shop_server("Shop", shop_dir, engines, addresses.port, environment=environment, after=("Upright service",)),
    ]


def shop_server(
    name: str,
    shop_dir: Path,
    engines: ShopEngines,
    port: int,
    *,
    environment: Mapping[str, str],
    after: tuple[str, ...] = (),
) -> Part:
    """One instance of the shop under gunicorn."""
    slug = name.lower().replace(" ", "-")

    def spawn() -> Child:
        variables = shop_environment(engines, environment) | {
            "SHOP_BIND": f"127.0.0.1:{port}",
            "SHOP_APPLICATION_NAME": slug,
            "SHOP_SPOOL_DIR": str(engines.data_dir / f"spool-{slug}"),
        }
        return Child(
            name,
            [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "--workers", "2", "--threads", "8"],
            log=engines.data_dir / f"{slug}.log",
            cwd=shop_dir,
            env=variables,
            grace_s=8,
        )

    needs = ("Shop tables", "Shop Redis", "Shop mailbox", "Shop carrier", *after)
    return ChildPart(name, spawn, answers_ok(f"http://127.0.0.1:{port}/healthz"), after=needs)


def shop_environment(engines: ShopEngines, environment: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what would lead libpq or Django elsewhere, and the shop's."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PG", "DJANGO_", "SHOP_", "UPRIGHT_", "GUNICORN_"))
    }
    return {**inherited, **engines.environment(), **environment, "DJANGO_SETTINGS_MODULE": "shop.settings"}
