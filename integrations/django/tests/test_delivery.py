"""The promise as a whole: whatever dies, every error arrives, and each is one row."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults import until

from error_logging import drain
from error_logging.models import ErrorLog
from error_logging.testing import Received, Reply, ScriptedService, closing, pending, refusal, unsigned

SITE = """
import os, sys, threading, time
import django
from django.conf import settings
spool, url, secret, host = sys.argv[1:5]
settings.configure(
    INSTALLED_APPS=["error_logging"], USE_TZ=True, UPRIGHT_SPOOL_DIR=spool, UPRIGHT_URL=url, UPRIGHT_SECRET=secret,
    DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "NAME": "test_site", "USER": "postgres", "HOST": host,
    }},
)
django.setup()
from error_logging import drain, events, recording
drain._FIRST_PAUSE_S, drain._LONGEST_PAUSE_S = 0.01, 0.05

def fail(number):
    try:
        raise ValueError(f"error {number}")
    except ValueError as error:
        event = events.build(error)
        record = recording.capture(event, began=time.monotonic())
        # From here on it is promised.
        os.write(1, record.error_id.encode() + b"\\n")
        recording.finish(record, answer=None, delivered=False)

def endlessly():
    number = 0
    while True:
        number += 1
        fail(number)
        time.sleep(0.002)

if sys.argv[5:] == ["drain"]:
    drain.start()
    sys.stdin.read()
else:
    for _ in range(3):
        threading.Thread(target=endlessly, daemon=True).start()
    sys.stdin.read()
"""


class Site:
    """A process of an application, which fails all the time."""

    def __init__(self, service: ScriptedService, spool: Path, postgres: Any, *more: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SITE, str(spool), service.url, service.secret, str(postgres.socket_dir), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def kill_after(self, errors: int) -> list[str]:
        """kill -9; the ids of the errors that it had promised to keep."""
        assert self._process.stdout is not None
        told = [self._process.stdout.readline() for _ in range(errors)]
        self._process.kill()
        rest = self._process.stdout.read()
        lines = b"".join(told) + rest
        self._close()
        return [line.decode() for line in lines.split(b"\n")[:-1]]

    def end(self) -> None:
        self._process.kill()
        self._close()

    def _close(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is one of the application, and takes over what dead ones left, if it has its threads by now."""
    monkeypatch.setattr(drain, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(drain, "_LONGEST_PAUSE_S", 0.05)


@pytest.mark.django_db(transaction=True)
def test_every_error_arrives_whatever_dies(service: ScriptedService, spool_dir: Path, postgres: Any) -> None:
    """Processes that are killed again and again, two at a time, and a receiver that fails every third time, after it
    has taken the message or before."""
    chance = random.Random(1815)
    taken: set[str] = set()

    def flaky(message: Received) -> Reply:
        if chance.random() < 0.2:
            return chance.choice([refusal(500), refusal(503, retry_after=0), closing(), unsigned(refusal(404))])
        taken.add(message.delivery_id)
        # It has it, and the answer is lost on its way.
        return closing() if chance.random() < 0.15 else pending()

    service.on_error(*[flaky] * 100_000)
    promised: list[str] = []
    for _ in range(4):
        pair = [Site(service, spool_dir, postgres) for _ in range(2)]
        for site in pair:
            promised += site.kill_after(chance.randrange(15, 40))
    last = Site(service, spool_dir, postgres, "drain")
    try:
        until(lambda: set(promised) <= taken, 60)
        until(lambda: not list(spool_dir.rglob("*.json")), 60)
    finally:
        last.end()
    assert len(promised) >= 120
    assert len(set(promised)) == len(promised)
    logged = [str(error_id) for error_id in ErrorLog.objects.values_list("error_id", flat=True)]
    assert set(promised) <= set(logged)
    # One that was kept, but not yet promised when its process died, is kept all the same: once.
    assert len(set(logged)) == len(logged)
    assert taken == set(logged)
    assert all(message.error_id == message.delivery_id for message in service.errors)
    assert drain.settle()
