"""Directives: the desired state of a service, under one growing version."""

from __future__ import annotations

from typing import Literal
from uuid import UUID, uuid4

from sqlalchemy import text

from upright.adapters.store import audit, rows, switches, topics
from upright.adapters.store.database import Database, Transaction, as_json
from upright.domain.directive import Directive
from upright.domain.message import Json
from upright.errors import StaleEpoch

_FENCE = text("""
    SELECT id FROM upright.recovery
    WHERE id = :recovery_id AND epoch = :epoch AND status IN ('queued', 'running') FOR SHARE""")

# The counter's row is the lock: versions become visible in their order.
_GROW = text("""
    INSERT INTO upright.service_version AS v (tenant, service, version) VALUES (:tenant, :service, 1)
    ON CONFLICT (tenant, service) DO UPDATE SET version = v.version + 1
    RETURNING version""")

_SUPERSEDE = text("""
    UPDATE upright.directive SET superseded_at = clock_timestamp()
    WHERE tenant = :tenant AND service = :service AND strategy = :strategy AND target = :target
      AND scope = 'process' AND superseded_at IS NULL AND withdrawn_at IS NULL
    RETURNING id, version, "values" """)

_PUT = text("""
    INSERT INTO upright.directive
        (id, tenant, service, strategy, target, version, "values", scope, recovery_id, expires_at)
    VALUES (:id, :tenant, :service, :strategy, :target, :version, CAST(:values AS jsonb), :scope, :recovery_id,
            clock_timestamp() + make_interval(secs => :ttl_s))""")

_PUT_BY = text("SELECT recovery_id FROM upright.directive WHERE id = :id")

_WITHDRAW = text("""
    UPDATE upright.directive SET withdrawn_at = clock_timestamp()
    WHERE id = :id AND withdrawn_at IS NULL
    RETURNING tenant, service, strategy, target, version, superseded_at IS NULL AND scope = 'process' AS desired""")

_VERSION = text("SELECT version FROM upright.service_version WHERE tenant = :tenant AND service = :service")

_DESIRED = text("""
    SELECT id, service, strategy, target, version, "values", scope,
           extract(epoch FROM expires_at - clock_timestamp()) AS ttl_s
    FROM upright.directive
    WHERE tenant = :tenant AND service = :service AND scope = 'process'
      AND superseded_at IS NULL AND withdrawn_at IS NULL AND expires_at > clock_timestamp()
    ORDER BY version""")


class Directives:
    _database: Database

    async def put_directive(
        self,
        tenant: str,
        service: str,
        strategy: str,
        target: str,
        *,
        values: Json,
        ttl_s: float,
        recovery_id: UUID,
        epoch: int,
        scope: Literal["process", "once"] = "process",
    ) -> Directive:
        directive_id = uuid4()

        async def work(tx: Transaction) -> Directive:
            if await tx.row(_FENCE, recovery_id=recovery_id, epoch=epoch) is None:
                raise StaleEpoch
            await switches.pass_by(tx, tenant, service)
            grown = await tx.row(_GROW, tenant=tenant, service=service)
            version = 0 if grown is None else int(grown["version"])
            before: Json = {}
            if scope == "process":
                former = await tx.row(_SUPERSEDE, tenant=tenant, service=service, strategy=strategy, target=target)
                if former is not None:
                    before = {"directive_id": str(former["id"]), "values": former["values"]}
            await tx.run(
                _PUT,
                id=directive_id,
                tenant=tenant,
                service=service,
                strategy=strategy,
                target=target,
                version=version,
                values=as_json(values),
                scope=scope,
                recovery_id=recovery_id,
                ttl_s=ttl_s,
            )
            await audit.add(
                tx,
                tenant=tenant,
                service=service,
                who="service",
                what="directive.put",
                subject=directive_id,
                why=f"recovery {recovery_id}",
                before=before,
                after={"service": service, "strategy": strategy, "target": target, "values": values, "ttl_s": ttl_s},
            )
            tx.announce(topics.of_service(tenant, service))
            return Directive(
                id=directive_id,
                service=service,
                strategy=strategy,
                target=target,
                version=version,
                values=values,
                ttl_s=ttl_s,
                scope=scope,
            )

        return await self._database.run(work)

    async def put_by(self, directive_id: UUID) -> UUID | None:
        row = await self._database.run(lambda tx: tx.row(_PUT_BY, id=directive_id))
        return None if row is None else row["recovery_id"]

    async def withdraw_directive(self, directive_id: UUID) -> None:
        async def work(tx: Transaction) -> None:
            row = await tx.row(_WITHDRAW, id=directive_id)
            if row is None:
                return
            if row["desired"]:
                await tx.run(_GROW, tenant=row["tenant"], service=row["service"])
                tx.announce(topics.of_service(row["tenant"], row["service"]))
            await audit.add(
                tx,
                tenant=row["tenant"],
                service=row["service"],
                who="service",
                what="directive.withdrawn",
                subject=directive_id,
                before={"strategy": row["strategy"], "target": row["target"], "version": row["version"]},
            )

        await self._database.run(work)

    async def desired(self, tenant: str, service: str) -> tuple[int, list[Directive]]:
        async def work(tx: Transaction) -> tuple[int, list[Directive]]:
            # In this order, a change in between shows in the directives first and in the version next time.
            version = await tx.row(_VERSION, tenant=tenant, service=service)
            found = await tx.rows(_DESIRED, tenant=tenant, service=service)
            return (0 if version is None else int(version["version"])), [rows.directive(row) for row in found]

        return await self._database.run(work)
