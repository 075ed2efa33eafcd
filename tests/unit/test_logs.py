"""What the service writes to its log."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from upright.cli import logs


@pytest.fixture
def configured() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("as_json", [False, True])
def test_a_traceback_shows_no_values(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def connect(url: str) -> None:
        raise ValueError("no such host")

    address = "postgresql://upright:s3cret@host/name"
    logs.configure(as_json=as_json)
    try:
        connect(address)
    except ValueError:
        logging.getLogger("upright").exception("it broke")
    written = capsys.readouterr().err
    assert "no such host" in written
    assert "in connect" in written
    assert "s3cret" not in written
