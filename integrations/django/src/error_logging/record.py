"""One error on its way: into the spool, then as a row into the database and as an event to the service."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

from error_logging import classification, counters, process
from error_logging.spool import Spool

logger = logging.getLogger("error_logging")

_lock = threading.Lock()


class Record:
    """It stays in the spool until its row is written and its event delivered.

    While `owned`, the request that caught the error delivers it; the drainer doesn't touch it.
    """

    __slots__ = (
        "_classified",
        "_event",
        "answer",
        "attempts",
        "began",
        "error_id",
        "owned",
        "spool",
        "wants_delivery",
        "wants_row",
        "written",
    )

    def __init__(self, error_id: str, event: dict[str, Any] | None, *, began: float, spool: Spool | None) -> None:
        self.error_id = error_id
        self._event = event
        self.began = began
        """time.monotonic() when the failed operation began."""
        self.spool = spool
        """None where the event could not be spooled: it lives in memory only."""
        self.answer: dict[str, Any] | None = None
        self.wants_row = True
        self.wants_delivery = True
        self.owned = False
        self.attempts = 0
        self.written: threading.Event | None = None
        self._classified: tuple[str, int] | None = None
        if event is not None:
            self.classify(event)

    @property
    def event(self) -> dict[str, Any]:
        """The event; read from the spool where it isn't in memory. Raises OSError and ValueError."""
        # Another thread may unload it meanwhile.
        event = self._event
        if event is None:
            event = self._event = self._load()
        return event

    @property
    def severity(self) -> str:
        """The answer's where there is one, else this side's provisional severity."""
        return (self.answer or {}).get("severity") or self._provisional()[0]

    @property
    def http_status(self) -> int:
        return self._provisional()[1]

    def age_ms(self) -> int:
        return max(0, int((time.monotonic() - self.began) * 1000))

    def payload(self) -> bytes:
        """What is kept on disk. The wall clock stands in for the monotonic one, which doesn't outlive the process."""
        kept = {"event": self._event, "began_at": time.time() - (time.monotonic() - self.began), "row": self.wants_row}
        return json.dumps(kept, separators=(",", ":"), ensure_ascii=False).encode()

    def unload(self) -> None:
        """Leave the event to the disk, so that thousands of waiting records don't fill the memory."""
        if self.spool is not None:
            self._event = None

    def settle(self, *, row: bool = False, delivery: bool = False, release: bool = False) -> None:
        """One of its two errands is done, or its owner lets go of it; with the last one it leaves the spool."""
        with _lock:
            if row:
                self.wants_row = False
            if delivery:
                self.wants_delivery = False
            if release:
                self.owned = False
            over = not (self.wants_row or self.wants_delivery or self.owned)
        if over and self.spool is not None:
            self.spool.remove(self.error_id)
            self.spool = None

    def _provisional(self) -> tuple[str, int]:
        if self._classified is None:
            self.classify(self.event)
        assert self._classified is not None  # noqa: S101
        return self._classified

    def classify(self, event: dict[str, Any]) -> None:
        error = event["error"]
        status = classification.classify(error["classes"] or [[error["type"]]]).http_status
        self._classified = (error["severity"], status)

    def _load(self) -> dict[str, Any]:
        if self.spool is None:
            raise FileNotFoundError(f"{self.error_id} is not in the spool any more")
        kept = json.loads(self.spool.read(self.error_id))
        event = kept["event"]
        if not isinstance(event, dict) or event.get("error_id") != self.error_id:
            raise ValueError("the file is not the event that its name says")
        return event


def adopted(spool: Spool, error_id: str) -> Record | None:
    """A record that another process left; None, and parked, where its file can't be understood."""
    record = Record(error_id, None, began=time.monotonic(), spool=spool)
    try:
        kept = json.loads(spool.read(error_id))
        record.began = time.monotonic() - max(0.0, time.time() - float(kept["began_at"]))
        record.wants_row = bool(kept["row"])
        if kept["event"]["error_id"] != error_id:
            raise ValueError("the file is not the event that its name says")
        record.classify(kept["event"])
    except OSError as error:
        # Perhaps only for want of file descriptors: it stays for whoever comes after this process.
        counters.add("spool_unreadable")
        logger.error("%s can't be read from the spool: %s", error_id, error)  # noqa: TRY400
        return None
    except Exception as error:
        # Whatever is in the file: torn, of another version, made by hand.
        counters.add("spool_unreadable")
        spool.refuse(error_id, f"unreadable: {error}")
        spool.remove(error_id)
        return None
    return record


def _renew() -> None:
    global _lock
    _lock = threading.Lock()


process.after_fork(_renew)
