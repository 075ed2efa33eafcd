"""Admission: how many recoveries run at once, and which comes next."""

from __future__ import annotations

import asyncio
import heapq
from uuid import UUID

from upright.services.ports import RecoveryRecord


class Admission:
    """The queue of this process, most severe first, then oldest. One event loop."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._heap: list[tuple[int, float, int, RecoveryRecord]] = []
        self._known: set[UUID] = set()
        """Queued or admitted here."""
        self._admitted = 0
        self._order = 0
        self._returning = 0
        self._freed = asyncio.Event()

    @property
    def room(self) -> int:
        """How many more may run now."""
        return max(0, self._cap - self._admitted - self._returning)

    @property
    def waiting(self) -> int:
        return len(self._heap)

    def knows(self, recovery_id: UUID) -> bool:
        return recovery_id in self._known

    def add(self, recovery: RecoveryRecord) -> None:
        """Once for each recovery, however often it is told."""
        if recovery.id in self._known:
            return
        self._known.add(recovery.id)
        self._order += 1
        heapq.heappush(self._heap, (recovery.severity.rank, recovery.created_at.timestamp(), self._order, recovery))

    def next(self) -> RecoveryRecord | None:
        """Admit the next one, if there is room. release() is to follow."""
        if not self._heap or not self.room:
            return None
        recovery = heapq.heappop(self._heap)[-1]
        self._admitted += 1
        return recovery

    def take(self, recovery_id: UUID | None = None) -> bool:
        """Admit one that came another way, if there is room. release() is to follow."""
        if not self.room:
            return False
        self._admitted += 1
        if recovery_id is not None:
            self._known.add(recovery_id)
        return True

    def release(self, recovery_id: UUID | None = None) -> None:
        self._admitted -= 1
        self._freed.set()
        if recovery_id is not None:
            self._known.discard(recovery_id)

    def step_out(self) -> None:
        """One that is admitted only waits from now on, and gives its place to others. return_() is to follow."""
        self._admitted -= 1
        self._freed.set()

    async def return_(self) -> None:
        """It goes on as soon as there is room, before those that have not begun. It has its place again even if this is
        cancelled: release() is to follow as ever."""
        self._returning += 1
        try:
            while self._admitted >= self._cap:
                self._freed.clear()
                await self._freed.wait()
        finally:
            self._returning -= 1
            self._admitted += 1
