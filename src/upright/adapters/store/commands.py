"""Commands: one piece of work for one process, handed out once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from sqlalchemy import text

from upright.adapters.store import topics
from upright.adapters.store.acknowledgements import acknowledge
from upright.adapters.store.database import Database, Row, Transaction, as_json
from upright.domain.directive import Command, CommandResult

# What the caller began in time may end a little late, and its result is still worth having.
_LATE_S = 2

_TO_WAITER = text(f"""
    INSERT INTO upright.command (id, tenant, service, error_id, kind, body, status, taken_at, taken_by, deadline_at)
    SELECT :id, e.tenant, e.service, e.id, :kind, CAST(:body AS jsonb), CAST(:status AS text),
           CASE WHEN :status = 'taken' THEN clock_timestamp() END,
           CASE WHEN :status = 'taken' THEN 'waiter' END,
           least(clock_timestamp() + make_interval(secs => :seconds), e.waiter_until + interval '{_LATE_S} seconds')
    FROM upright.error e
    WHERE e.id = :error_id AND e.waiter_until > clock_timestamp() AND :kind = ANY(e.waiter_can)
    ON CONFLICT (id) DO NOTHING
    RETURNING id""")  # noqa: S608  # constants only

_TO_AGENT = text("""
    INSERT INTO upright.command (id, tenant, service, instance, kind, body, deadline_at)
    VALUES (:id, :tenant, :service, :instance, :kind, CAST(:body AS jsonb),
            clock_timestamp() + make_interval(secs => :seconds))
    ON CONFLICT (id) DO NOTHING""")

# Its time is the command's, and no more than it has itself: the second statement sees the row as it was before.
_CLAIM_FOR_WAITER = text("""
    WITH claimed AS (
        UPDATE upright.command SET status = 'taken', taken_at = clock_timestamp(), taken_by = 'waiter'
        WHERE id = (
            SELECT id FROM upright.command
            WHERE error_id = :error_id AND status = 'waiting' AND deadline_at > clock_timestamp()
            ORDER BY created_at LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING body, deadline_at
    ), presence AS (
        UPDATE upright.error SET waiter_until = claimed.deadline_at FROM claimed WHERE id = :error_id
    )
    SELECT body, 1000 * extract(epoch FROM least(deadline_at, e.waiter_until) - clock_timestamp()) AS left_ms
    FROM claimed, upright.error e WHERE e.id = :error_id""")

_CLAIM_FOR_AGENT = text("""
    UPDATE upright.command SET status = 'taken', taken_at = clock_timestamp(), taken_by = :instance
    WHERE id IN (
        SELECT id FROM upright.command
        WHERE tenant = :tenant AND service = :service AND error_id IS NULL AND status = 'waiting'
          AND deadline_at > clock_timestamp()
          AND (instance IS NULL OR instance = :instance)
          AND (CAST(:kinds AS text[]) IS NULL OR kind = ANY(CAST(:kinds AS text[])))
        ORDER BY created_at LIMIT :limit FOR UPDATE SKIP LOCKED)
    RETURNING body, 1000 * extract(epoch FROM deadline_at - clock_timestamp()) AS left_ms""")

_FINISH = text("""
    UPDATE upright.command SET status = 'done', result = CAST(:result AS jsonb), finished_at = clock_timestamp()
    WHERE id = :id AND tenant = :tenant AND result IS NULL
      AND (CAST(:error_id AS uuid) IS NULL AND error_id IS NULL OR error_id = CAST(:error_id AS uuid))""")

_RESULT = text("""
    SELECT c.status, c.result, c.deadline_at <= clock_timestamp() AS late,
           c.error_id IS NOT NULL AND COALESCE(e.waiter_until <= clock_timestamp(), true) AS alone
    FROM upright.command c LEFT JOIN upright.error e ON e.id = c.error_id WHERE c.id = :id""")

_EXPIRE = text("""
    UPDATE upright.command SET status = 'expired', finished_at = clock_timestamp()
    WHERE id = :id AND status IN ('waiting', 'taken')""")

_ASKED = text("""
    SELECT EXISTS (SELECT FROM upright.command
                   WHERE error_id = :error_id AND kind = :kind AND created_at >= :since) AS asked""")


class Commands:
    _database: Database

    async def put_waiter_command(
        self, error_id: UUID, command: Command, *, status: Literal["waiting", "taken"] = "waiting"
    ) -> bool:
        """For the caller that waits for this error; `taken` where that caller is being answered with it. False if
        nobody waits, or it can't carry out that kind."""

        async def work(tx: Transaction) -> bool:
            row = await tx.row(
                _TO_WAITER,
                id=command.id,
                error_id=error_id,
                kind=command.kind,
                body=_body(command),
                status=status,
                seconds=command.deadline_ms / 1000,
            )
            if row is not None and status == "waiting":
                tx.announce(topics.of_error(error_id))
            return row is not None

        return await self._database.run(work)

    async def put_agent_command(self, tenant: str, service: str, command: Command, instance: str | None) -> None:
        async def work(tx: Transaction) -> None:
            await tx.run(
                _TO_AGENT,
                id=command.id,
                tenant=tenant,
                service=service,
                instance=instance,
                kind=command.kind,
                body=_body(command),
                seconds=command.deadline_ms / 1000,
            )
            tx.announce(topics.of_service(tenant, service))

        await self._database.run(work)

    async def claim_waiter_command(self, error_id: UUID) -> Command | None:
        """The next command for this error's caller, who from now on is busy with it until its deadline."""
        row = await self._database.run(lambda tx: tx.row(_CLAIM_FOR_WAITER, error_id=error_id))
        return None if row is None else _handed(row)

    async def claim_agent_commands(
        self, tenant: str, service: str, instance: str, kinds: Sequence[str] | None, limit: int = 4
    ) -> list[Command]:
        """Commands for this process, each claimed by it alone. `kinds` None: it can carry out all of them."""
        found = await self._database.run(
            lambda tx: tx.rows(
                _CLAIM_FOR_AGENT,
                tenant=tenant,
                service=service,
                instance=instance,
                kinds=None if kinds is None else list(kinds),
                limit=limit,
            )
        )
        return [_handed(row) for row in found]

    async def command_progress(self, command_id: UUID) -> tuple[CommandResult | None, bool]:
        """Its result, and whether none is to be expected any more: the deadline has passed, or nobody took it and its
        caller waits no longer."""
        row = await self._database.run(lambda tx: tx.row(_RESULT, id=command_id))
        if row is None:
            return None, True
        if row["result"] is not None:
            return CommandResult.model_validate(row["result"]), True
        return None, row["late"] or row["status"] == "expired" or (row["status"] == "waiting" and row["alone"])

    async def expire_command(self, command_id: UUID) -> None:
        await self._database.run(lambda tx: tx.run(_EXPIRE, id=command_id))

    async def was_asked(self, error_id: UUID, kind: str, since: object) -> bool:
        """Whether this error's caller was given a command of that kind since then."""
        row = await self._database.run(lambda tx: tx.row(_ASKED, error_id=error_id, kind=kind, since=since))
        return row is not None and bool(row["asked"])


async def finish(
    tx: Transaction, tenant: str, instance: str, result: CommandResult, *, error_id: UUID | None = None
) -> None:
    """Keep the first result of a command, and its acknowledgements."""
    changed = await tx.run(
        _FINISH, id=result.command_id, tenant=tenant, error_id=error_id, result=as_json(result.model_dump(mode="json"))
    )
    await acknowledge(tx, tenant, instance, result.acknowledgements)
    if changed:
        tx.announce(topics.of_command(result.command_id))


def _body(command: Command) -> str:
    return as_json(command.model_dump(mode="json"))


def _handed(row: Row) -> Command:
    left_ms = max(0, int(row["left_ms"]))
    return Command.model_validate(row["body"]).model_copy(update={"deadline_ms": left_ms})
