"""The shop's tests run against a whole Upright service, and engines of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connections

from upright.adapters.engines import EmbeddedPostgres, EmbeddedRedis
from upright.testing.fixtures import upright_service
from upright.testing.service import RunningService

__all__ = ["upright_service"]


@pytest.fixture(scope="session")
def django_db_modify_db_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The shop's database, on a cluster of the test session's own."""
    place = tmp_path_factory.mktemp("shop")
    with EmbeddedPostgres(place / "postgres", durable=False, name="Shop PostgreSQL") as server:
        connections["default"].settings_dict["HOST"] = str(server.socket_dir)
        yield
        connections.close_all()
        connections["default"].close_pool()


@pytest.fixture(scope="session", autouse=True)
def shop_with_service(
    upright_service: RunningService, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    """The two settings that connect the shop, and its cache."""
    from django.test import override_settings

    spool: Path = tmp_path_factory.mktemp("spool")
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as redis:
        caches = {"default": {**settings.CACHES["default"], "LOCATION": redis.url()}}
        with override_settings(
            UPRIGHT_URL=upright_service.url,
            UPRIGHT_SECRET=upright_service.secret,
            UPRIGHT_SPOOL_DIR=str(spool),
            CACHES=caches,
            CACHE_URL=redis.url(),
        ):
            yield upright_service
