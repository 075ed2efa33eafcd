"""Dispatch: commands to the application's processes and their results, across replicas, through the command table."""

from __future__ import annotations

import asyncio
from uuid import UUID

from upright.adapters.bus import Bus, Subscription
from upright.adapters.store import PostgresStore, topics
from upright.domain.directive import Command, CommandResult
from upright.domain.message import Json
from upright.services.ports import Instance


class CommandDispatch:
    def __init__(self, store: PostgresStore, bus: Bus) -> None:
        self._store = store
        self._bus = bus

    async def to_waiter(self, error_id: UUID, command: Command) -> CommandResult | None:
        with self._bus.subscribe(topics.of_command(command.id), topics.of_error(error_id)) as news:
            if not await self._store.put_waiter_command(error_id, command):
                return None
            return await self._result(command, news)

    async def to_agent(
        self, tenant: str, service: str, command: Command, instance: str | None = None
    ) -> CommandResult | None:
        if not await self._able(tenant, service, command, instance):
            return None
        with self._bus.subscribe(topics.of_command(command.id)) as news:
            await self._store.put_agent_command(tenant, service, command, instance)
            return await self._result(command, news, (tenant, service, instance))

    async def waiter_present(self, error_id: UUID) -> bool:
        return await self._store.waiter_present(error_id)

    async def _able(self, tenant: str, service: str, command: Command, instance: str | None) -> bool:
        """Whether a live process can be expected to take it."""
        live = await self._store.live_instances(tenant, service)
        return any(instance in (None, one.id) and _knows(one, command.kind) for one in live)

    async def _result(
        self, command: Command, news: Subscription, agents: tuple[str, str, str | None] | None = None
    ) -> CommandResult | None:
        """Wait until the deadline; past it, or if this wait is cancelled, nobody may begin any more.

        Also while the process is about to end: to stop waiting would be taken for a verdict. The runner cancels what
        does not end in time, and another process goes on with it.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + command.deadline_ms / 1000
        over = False
        try:
            while not over:
                woken = await news.wait(deadline - loop.time())
                result, over = await self._store.command_progress(command.id)
                if result is not None:
                    return result
                over = over or loop.time() >= deadline
                if not (over or woken or agents is None):
                    tenant, service, instance = agents
                    over = not await self._able(tenant, service, command, instance)
        except asyncio.CancelledError:
            await asyncio.shield(self._store.expire_command(command.id))
            raise
        await self._store.expire_command(command.id)
        # It may have come just before.
        return (await self._store.command_progress(command.id))[0]


def kinds_of(capabilities: Json) -> list[str] | None:
    """Kinds of command that a process announces; None where it announces nothing, and is taken to know them all."""
    kinds = capabilities.get("commands")
    return [str(kind) for kind in kinds] if isinstance(kinds, list) else None  # pyright: ignore


def _knows(instance: Instance, kind: str) -> bool:
    kinds = kinds_of(instance.capabilities)
    return kinds is None or kind in kinds
