"""Instances: the processes of a service, by what they say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from upright.adapters.store import commands, outcomes
from upright.adapters.store.acknowledgements import acknowledge
from upright.adapters.store.database import Database, Transaction, as_json
from upright.domain.directive import SyncRequest
from upright.services.ports import Instance


@dataclass(frozen=True)
class News:
    """What waits for a process that syncs."""

    version: int
    commands: bool
    outcomes: bool
    current: bool
    """False where a later sync of the same process has come in: this one may take nothing any more."""


_ARRIVE = text("""
    WITH known AS (
        INSERT INTO upright.tenant (name) VALUES (:tenant) ON CONFLICT DO NOTHING
    )
    INSERT INTO upright.instance AS i
        (tenant, service, id, environment, desired_version, measurements, capabilities, settings, held_until)
    VALUES (:tenant, :service, :id, :environment, :desired_version, CAST(:measurements AS jsonb),
            CAST(:capabilities AS jsonb), CAST(:settings AS jsonb),
            clock_timestamp() + make_interval(secs => :hold_s))
    ON CONFLICT (tenant, service, id) DO UPDATE SET
        environment = excluded.environment, desired_version = excluded.desired_version,
        measurements = excluded.measurements, capabilities = excluded.capabilities, settings = excluded.settings,
        sync = i.sync + 1, seen_at = clock_timestamp(), held_until = excluded.held_until, gone_at = NULL
    RETURNING sync""")

# Processes come and go by the thousand where a server renews its workers.
_SWEEP = text("""
    DELETE FROM upright.instance
    WHERE tenant = :tenant AND service = :service AND seen_at < clock_timestamp() - interval '1 day'
      AND (held_until IS NULL OR held_until < clock_timestamp() - interval '1 day')""")

_FORGET = text("""
    UPDATE upright.instance SET gone_at = clock_timestamp(), held_until = NULL
    WHERE tenant = :tenant AND service = :service AND id = :id AND sync = COALESCE(CAST(:sync AS bigint), sync)""")

_LIVE = text("""
    SELECT id, service, desired_version, measurements, capabilities, settings, seen_at FROM upright.instance
    WHERE tenant = :tenant AND service = :service AND gone_at IS NULL
      AND (seen_at > clock_timestamp() - make_interval(secs => :ttl_s) OR held_until > clock_timestamp())
    ORDER BY id""")

_NEWS = text(f"""
    SELECT
        COALESCE((SELECT version FROM upright.service_version WHERE tenant = :tenant AND service = :service), 0)
            AS version,
        EXISTS (SELECT FROM upright.command c
                WHERE c.tenant = :tenant AND c.service = :service AND c.error_id IS NULL AND c.status = 'waiting'
                  AND c.deadline_at > clock_timestamp() AND (c.instance IS NULL OR c.instance = :id)
                  AND (CAST(:kinds AS text[]) IS NULL OR c.kind = ANY(CAST(:kinds AS text[])))) AS commands,
        EXISTS (SELECT {outcomes.DUE}) AS outcomes,
        COALESCE((SELECT sync FROM upright.instance WHERE tenant = :tenant AND service = :service AND id = :id), 0)
            = :sync AS current""")  # noqa: S608  # constants only

_LARGEST_VERSION = 2**63 - 1


class Instances:
    _database: Database
    _instance_ttl_s: float

    async def sync(self, tenant: str, request: SyncRequest) -> None:
        await self.arrive(tenant, request)

    async def arrive(self, tenant: str, request: SyncRequest) -> int:
        """Record what an agent reports; the number of this sync among those of its process."""

        async def work(tx: Transaction) -> int:
            row = await tx.row(
                _ARRIVE,
                tenant=tenant,
                service=request.service,
                id=request.instance,
                environment=request.environment,
                desired_version=min(request.desired_version, _LARGEST_VERSION),
                measurements=as_json(request.measurements),
                capabilities=as_json(request.capabilities),
                settings=as_json(request.settings.model_dump(mode="json")),
                hold_s=request.hold_ms / 1000,
            )
            if row is not None and row["sync"] == 1:
                await tx.run(_SWEEP, tenant=tenant, service=request.service)
            await acknowledge(tx, tenant, request.instance, request.acknowledgements)
            for result in request.results:
                await commands.finish(tx, tenant, request.instance, result)
            if request.outcomes_received:
                await outcomes.receive(tx, tenant, request.service, request.instance, request.outcomes_received)
            return 0 if row is None else int(row["sync"])

        return await self._database.run(work)

    async def news(self, tenant: str, service: str, instance: str, *, sync: int, kinds: Sequence[str] | None) -> News:
        row = await self._database.run(
            lambda tx: tx.row(
                _NEWS,
                tenant=tenant,
                service=service,
                id=instance,
                sync=sync,
                kinds=None if kinds is None else list(kinds),
            )
        )
        if row is None:
            raise RuntimeError("A query without a table returned no row.")
        return News(int(row["version"]), row["commands"], row["outcomes"], row["current"])

    async def forget_instance(self, tenant: str, service: str, instance: str, *, sync: int | None = None) -> None:
        """It is gone; with `sync`, only if it has not been heard of since that one."""
        await self._database.run(lambda tx: tx.run(_FORGET, tenant=tenant, service=service, id=instance, sync=sync))

    async def live_instances(self, tenant: str, service: str) -> Sequence[Instance]:
        found = await self._database.run(
            lambda tx: tx.rows(_LIVE, tenant=tenant, service=service, ttl_s=self._instance_ttl_s)
        )
        return [Instance(**row) for row in found]
