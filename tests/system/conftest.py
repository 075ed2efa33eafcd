"""The whole stack with the sample shop, once, and a browser."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "examples" / "demo")]

from browser import browser_page  # noqa: E402 - examples are programs, not packages
from playwright.sync_api import Page  # noqa: E402
from stage import Stage, staged  # noqa: E402


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("stack"), Console(quiet=True)) as found:
        yield found


@pytest.fixture
def page() -> Iterator[Page]:
    with browser_page() as found:
        yield found
