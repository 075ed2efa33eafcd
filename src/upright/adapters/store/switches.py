"""Switches: recovery is stopped, everywhere or for one service, until someone starts it again.

Whoever puts something in force holds a shared lock while it does; stopping takes it alone. So nothing can come into
force after a stop, and the stop sees all that is to be withdrawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from upright.adapters.store import audit, topics
from upright.adapters.store.database import Database, Row, Transaction
from upright.errors import Stopped
from upright.services.guardrails.guard import stop_reason
from upright.services.guardrails.ports import EVERY, Origin, Switch

_SHARED = text("SELECT pg_advisory_xact_lock_shared(hashtext('upright.switch'))")
_ALONE = text("SELECT pg_advisory_xact_lock(hashtext('upright.switch'))")

_STOPPED = text("""
    SELECT * FROM upright.switch WHERE tenant IN ('*', :tenant) AND service IN ('*', :service)
    ORDER BY service = '*' DESC, at LIMIT 1""")

_LIST = text("SELECT * FROM upright.switch ORDER BY tenant, service, origin")

_STOP = text("""
    INSERT INTO upright.switch (tenant, service, origin, by, why) VALUES (:tenant, :service, :origin, :by, :why)
    ON CONFLICT (tenant, service, origin) DO UPDATE SET by = excluded.by, why = excluded.why""")

_START = text("""
    DELETE FROM upright.switch
    WHERE tenant = :tenant AND service = :service AND (:origin = 'operator' OR origin = :origin)
    RETURNING *""")

_IN_FORCE = """
    (:tenant = '*' OR tenant = :tenant) AND (:service = '*' OR service = :service)"""

_WITHDRAW = text(f"""
    UPDATE upright.directive SET withdrawn_at = clock_timestamp()
    WHERE {_IN_FORCE} AND scope = 'process' AND superseded_at IS NULL AND withdrawn_at IS NULL
      AND expires_at > clock_timestamp()
    RETURNING id, tenant, service, strategy, target, version, "values" """)  # noqa: S608  # constants only

_EXPIRE = text(f"""
    UPDATE upright.command SET status = 'expired', finished_at = clock_timestamp()
    WHERE {_IN_FORCE} AND status = 'waiting' AND kind IN ('apply', 'retry')""")  # noqa: S608  # constants only

# Whoever watches for scalings that are over takes them back, once their recovery has ended.
_SCALE_BACK = text(f"""
    UPDATE upright.scaling SET expires_at = clock_timestamp()
    WHERE {_IN_FORCE} AND expires_at > clock_timestamp()""")  # noqa: S608  # constants only

_GROW = text(f"""
    UPDATE upright.service_version SET version = version + 1 WHERE {_IN_FORCE}
    RETURNING tenant, service""")  # noqa: S608  # constants only


async def pass_by(tx: Transaction, tenant: str, service: str) -> None:
    """Until this transaction ends nobody stops recovery. Raises Stopped where it is stopped already."""
    await tx.run(_SHARED)
    row = await tx.row(_STOPPED, tenant=tenant, service=service)
    if row is not None:
        switch = _switch(row)
        raise Stopped(stop_reason(switch.by, switch.why, switch.where))


class Switches:
    _database: Database

    async def stopped(self, tenant: str, service: str) -> Switch | None:
        row = await self._database.run(lambda tx: tx.row(_STOPPED, tenant=tenant, service=service))
        return None if row is None else _switch(row)

    async def switches(self) -> Sequence[Switch]:
        return [_switch(row) for row in await self._database.run(lambda tx: tx.rows(_LIST))]

    async def stop(self, tenant: str, service: str, *, origin: Origin, by: str, why: str) -> int:
        where = {"tenant": tenant, "service": service}

        async def work(tx: Transaction) -> int:
            await tx.run(_ALONE)
            await tx.run(_STOP, **where, origin=origin, by=by, why=why)
            await tx.run(_EXPIRE, **where)
            withdrawn = await tx.rows(_WITHDRAW, **where)
            scaled = await tx.run(_SCALE_BACK, **where)
            await _audit(tx, "switch.stopped", where, origin, by, why, directives=len(withdrawn), scalings=scaled)
            for row in withdrawn:
                await audit.add(
                    tx,
                    tenant=row["tenant"],
                    service=row["service"],
                    who=by,
                    what="directive.withdrawn",
                    subject=row["id"],
                    why=f"recovery was stopped: {why}",
                    before={name: row[name] for name in ("strategy", "target", "version", "values")},
                )
            await _recall(tx, where)
            return len(withdrawn)

        return await self._database.run(work)

    async def start(self, tenant: str, service: str, *, origin: Origin, by: str, why: str) -> int:
        where = {"tenant": tenant, "service": service}

        async def work(tx: Transaction) -> int:
            await tx.run(_ALONE)
            lifted = await tx.rows(_START, **where, origin=origin)
            if lifted:
                await _audit(tx, "switch.started", where, origin, by, why, switches=len(lifted))
            return len(lifted)

        return await self._database.run(work)

    async def recall(self, tenant: str, service: str) -> None:
        await self._database.run(lambda tx: _recall(tx, {"tenant": tenant, "service": service}))


async def _recall(tx: Transaction, where: dict[str, str]) -> None:
    """A new version of the desired state, so that every process looks, one that has just been late too."""
    for row in await tx.rows(_GROW, **where):
        tx.announce(topics.of_service(row["tenant"], row["service"]))


async def _audit(
    tx: Transaction, what: str, where: dict[str, str], origin: str, by: str, why: str, **after: object
) -> None:
    service = where["service"]
    await audit.add(
        tx,
        tenant=where["tenant"],
        service="" if service == EVERY else service,
        who=by,
        what=what,
        subject=service,
        why=why,
        after={"origin": origin, **after},
    )


def _switch(row: Row) -> Switch:
    return Switch(row["tenant"], row["service"], row["origin"], row["by"], row["why"], row["at"])
