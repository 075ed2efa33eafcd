"""ErrorRecoveryContextManager: recovery for a block of code."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections

from error_logging import events, exchange, handling, probes, recording, waiting

logger = logging.getLogger("error_logging")


class ErrorRecoveryContextManager:
    """Records what a block raises, and tries to recover it. For `with` and `async with`.

    A block can't be done again, so its evidence is a probe: `probe`, a callable that raises or returns False where what
    the block needs doesn't work, or the default one for the error's type. Only if the recovery succeeded and the probe
    works after it is the exception suppressed; otherwise it goes on, with its traceback.

    Args:
        service: name of the service, where it is not UPRIGHT_SERVICE
        probe: shows whether what failed works again
        context: what the recovery should know; scrubbed
    """

    def __init__(
        self,
        service: str | None = None,
        *,
        probe: Callable[[], Any] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self.service = service
        self.probe = probe
        self.context = context
        self.error_id: str | None = None
        """Of the error that was caught, once there is one."""
        self.recovery: dict[str, Any] | None = None
        """The report of its recovery."""
        self._began = 0.0

    def __enter__(self) -> ErrorRecoveryContextManager:
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if exc is None or not handling.is_error(exc) or not isinstance(exc, Exception):
            return False
        try:
            return self._recovered(exc)
        except Exception:
            logger.exception("Upright failed while it handled an error; the exception goes on")
            return False

    async def __aenter__(self) -> ErrorRecoveryContextManager:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return await sync_to_async(self.__exit__, thread_sensitive=True)(kind, exc, traceback)

    def _recovered(self, exc: Exception) -> bool:
        event = events.build(exc, origin="block", service=self.service, context=self.context, began=self._began)
        record = recording.capture(event, began=self._began)
        self.error_id = record.error_id
        with handling.kept(record):
            if _in_application_block():
                # The transaction is broken, whatever the recovery does: the block above must see the exception.
                recording.finish_later(record)
                return False
            answer, delivered = handling.not_waited(record), False
            with waiting.place() as place:
                if place:
                    waiting.give_back_connections()
                    ended = exchange.run(record, replay=None, probe=probes.evidence_of(self.probe, exc, event))
                    answer, delivered = ended.answer, ended.delivered
            self.recovery = answer["recovery"]
            recording.finish(record, answer=answer, delivered=delivered)
            return bool(answer["recovery"].get("success"))


def _in_application_block() -> bool:
    return any(
        connection.in_atomic_block and not getattr((connection.atomic_blocks or [None])[-1], "_from_testcase", False)
        for connection in connections.all(initialized_only=True)
    )
