"""Directives: the desired state of a service, under one growing version."""

from __future__ import annotations

from collections.abc import Sequence
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
    RETURNING id, version, "values", instances, replaces""")

_PUT = text("""
    INSERT INTO upright.directive
        (id, tenant, service, strategy, target, version, "values", scope, recovery_id, expires_at, instances, replaces)
    VALUES (:id, :tenant, :service, :strategy, :target, :version, CAST(:values AS jsonb), :scope, :recovery_id,
            clock_timestamp() + make_interval(secs => :ttl_s), CAST(:instances AS text[]), :replaces)""")

_PUT_BY = text("SELECT recovery_id FROM upright.directive WHERE id = :id")

_WITHDRAW = text("""
    UPDATE upright.directive SET withdrawn_at = clock_timestamp()
    WHERE id = :id AND withdrawn_at IS NULL
    RETURNING tenant, service, strategy, target, version, superseded_at IS NULL AND scope = 'process' AS desired""")

_WIDEN = text("""
    UPDATE upright.directive SET instances = NULL, replaces = NULL, version = :version
    WHERE id = :id""")

_TO_WIDEN = text("""
    SELECT tenant, service, version, instances FROM upright.directive
    WHERE id = :id AND superseded_at IS NULL AND withdrawn_at IS NULL AND expires_at > clock_timestamp()""")

_VERSION = text("SELECT version FROM upright.service_version WHERE tenant = :tenant AND service = :service")

_STANDING = text("""
    SELECT id, service, strategy, target, version, "values", scope, instances,
           extract(epoch FROM expires_at - clock_timestamp()) AS ttl_s
    FROM upright.directive
    WHERE recovery_id = :recovery_id AND scope = 'process'
      AND superseded_at IS NULL AND withdrawn_at IS NULL AND expires_at > clock_timestamp()
    ORDER BY version""")

# A process that a directive is not for holds on to what that one replaces, as long as it would have.
_DESIRED = text("""
    SELECT o.id, o.service, o.strategy, o.target, o.version, o."values", o.scope, o.instances,
           extract(epoch FROM o.expires_at - clock_timestamp()) AS ttl_s
    FROM upright.directive d
    JOIN upright.directive o ON o.id = CASE
        WHEN CAST(:instance AS text) IS NULL OR d.instances IS NULL OR :instance = ANY(d.instances) THEN d.id
        ELSE d.replaces END
    WHERE d.tenant = :tenant AND d.service = :service AND d.scope = 'process'
      AND d.superseded_at IS NULL AND d.withdrawn_at IS NULL AND d.expires_at > clock_timestamp()
      AND o.withdrawn_at IS NULL AND o.expires_at > clock_timestamp()
    ORDER BY o.version""")


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
        instances: Sequence[str] | None = None,
    ) -> Directive:
        directive_id = uuid4()
        named = None if instances is None or scope == "once" else list(instances)

        async def work(tx: Transaction) -> Directive:
            if await tx.row(_FENCE, recovery_id=recovery_id, epoch=epoch) is None:
                raise StaleEpoch
            await switches.pass_by(tx, tenant, service)
            grown = await tx.row(_GROW, tenant=tenant, service=service)
            version = 0 if grown is None else int(grown["version"])
            before: Json = {}
            replaces: UUID | None = None
            if scope == "process":
                former = await tx.row(_SUPERSEDE, tenant=tenant, service=service, strategy=strategy, target=target)
                if former is not None:
                    before = {"directive_id": str(former["id"]), "values": former["values"]}
                    if named is not None:
                        # One that was itself for some only has come to no verdict: the others never had it.
                        replaces = former["id"] if former["instances"] is None else former["replaces"]
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
                instances=named,
                replaces=replaces,
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
                instances=named,
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

    async def widen_directive(self, directive_id: UUID) -> int | None:
        async def work(tx: Transaction) -> int | None:
            row = await tx.row(_TO_WIDEN, id=directive_id)
            if row is None:
                return None
            if row["instances"] is None:
                return int(row["version"])
            grown = await tx.row(_GROW, tenant=row["tenant"], service=row["service"])
            version = 0 if grown is None else int(grown["version"])
            await tx.run(_WIDEN, id=directive_id, version=version)
            await audit.add(
                tx,
                tenant=row["tenant"],
                service=row["service"],
                who="service",
                what="directive.widened",
                subject=directive_id,
                before={"instances": row["instances"], "version": row["version"]},
                after={"version": version},
            )
            tx.announce(topics.of_service(row["tenant"], row["service"]))
            return version

        return await self._database.run(work)

    async def standing(self, recovery_id: UUID) -> list[Directive]:
        return [
            rows.directive(row)
            for row in await self._database.run(lambda tx: tx.rows(_STANDING, recovery_id=recovery_id))
        ]

    async def desired(self, tenant: str, service: str, instance: str | None = None) -> tuple[int, list[Directive]]:
        async def work(tx: Transaction) -> tuple[int, list[Directive]]:
            # In this order, a change in between shows in the directives first and in the version next time.
            version = await tx.row(_VERSION, tenant=tenant, service=service)
            found = await tx.rows(_DESIRED, tenant=tenant, service=service, instance=instance)
            return (0 if version is None else int(version["version"])), [rows.directive(row) for row in found]

        return await self._database.run(work)
