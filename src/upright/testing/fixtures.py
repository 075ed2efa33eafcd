"""Fixtures for pytest: `from upright.testing.fixtures import upright_service` in a conftest.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from upright.testing.service import RunningService, running_service

__all__ = ["upright_service"]


@pytest.fixture(scope="session")
def upright_service() -> Iterator[RunningService]:
    """A whole service for the session, with the runbooks that ship with Upright."""
    with running_service() as service:
        yield service
