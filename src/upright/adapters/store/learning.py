"""What recoveries have taught, versions of models, and which of them scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import LargeBinary, bindparam, text

from upright.adapters.store import audit, rows
from upright.adapters.store.database import Database, Transaction, as_json
from upright.domain.message import Json
from upright.services.learning.episode import episode_of
from upright.services.learning.ports import RELAPSE_S, ModelVersion, Outcome, Use, Uses

# Where a relapse was marked, the action's verdict says what it counts for. Another one is an operation of the same
# incident that failed while the change was to hold, though nobody watches for relapses; what joined the recovery began
# in a process that did not hold the change yet.
_OUTCOMES = text(f"""
    SELECT * FROM (
        SELECT r.tenant, r.finished_at, r.explanation, {rows.ACTIONS},
               r.status = 'recovered' AND EXISTS (
                   SELECT 1 FROM upright.error e
                   WHERE e.incident_id = r.incident_id AND e.recovery_id IS DISTINCT FROM r.id
                     AND e.began_at > r.finished_at AND e.began_at < LEAST(
                       r.finished_at + make_interval(secs => :relapse_s),
                       COALESCE((SELECT min(d.expires_at) FROM upright.directive d
                                 WHERE d.recovery_id = r.id AND d.scope = 'process' AND d.withdrawn_at IS NULL),
                                'infinity'))
               ) AS relapsed
        FROM upright.recovery r
        WHERE r.status IN ('recovered', 'not_recovered', 'unknown', 'relapsed') AND r.explanation ? 'learning'
          AND r.finished_at > COALESCE(CAST(:since AS timestamptz), '-infinity')
        ORDER BY r.finished_at DESC, r.id LIMIT :limit) latest
    ORDER BY finished_at""")  # noqa: S608  # constants only

_LATEST = text("SELECT max(finished_at) AS latest FROM upright.recovery")

_USES = text("SELECT tenant, uses, version, who, why, since FROM upright.model_use")

_USE = text("""
    INSERT INTO upright.model_use (tenant, uses, version, who, why)
    VALUES (:tenant, :uses, :version, :who, :why)
    ON CONFLICT (tenant) DO UPDATE SET uses = excluded.uses, version = excluded.version, who = excluded.who,
        why = excluded.why, since = clock_timestamp()""")

_PROMOTED = text("""
    UPDATE upright.model_version SET promoted_at = clock_timestamp() WHERE tenant = :tenant AND version = :version""")

_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('upright.model_version'), hashtext(:tenant))")

_ADD = text("""
    INSERT INTO upright.model_version (tenant, version, beta, evaluation, outcomes, trained_until)
    SELECT :tenant, COALESCE(max(version), 0) + 1, CAST(:beta AS jsonb), CAST(:evaluation AS jsonb), :outcomes,
           CAST(:trained_until AS timestamptz)
    FROM upright.model_version WHERE tenant = :tenant
    RETURNING version""")

_COMPLETE = text("""
    UPDATE upright.model_version SET artifact = :artifact, sha256 = :sha256, card = :card
    WHERE tenant = :tenant AND version = :version""").bindparams(bindparam("artifact", type_=LargeBinary))

_VERSIONS = text("""
    SELECT tenant, version, sha256, evaluation, card, outcomes, trained_until, promoted_at, created_at
    FROM upright.model_version WHERE tenant = :tenant ORDER BY version DESC""")

_ARTIFACT = text("SELECT artifact FROM upright.model_version WHERE tenant = :tenant AND version = :version")

_IN_FLIGHT = text("""
    SELECT count(*) AS count FROM upright.recovery
    WHERE status IN ('queued', 'running') AND tenant = :tenant AND service = :service""")


class Learnings:
    _database: Database

    async def in_flight(self, tenant: str, service: str) -> int:
        row = await self._database.run(lambda tx: tx.row(_IN_FLIGHT, tenant=tenant, service=service))
        return 0 if row is None else int(row["count"])

    async def outcomes(self, since: datetime | None, limit: int) -> Sequence[Outcome]:
        found = await self._database.run(lambda tx: tx.rows(_OUTCOMES, since=since, limit=limit, relapse_s=RELAPSE_S))
        outcomes: list[Outcome] = []
        for row in found:
            actions = [rows.action(one) for one in row["actions"]]
            episode = episode_of(row["explanation"], actions, finished_at=row["finished_at"], relapsed=row["relapsed"])
            if episode is not None:
                outcomes.append(Outcome(row["tenant"], episode))
        return outcomes

    async def latest_outcome(self) -> datetime | None:
        row = await self._database.run(lambda tx: tx.row(_LATEST))
        return None if row is None else row["latest"]

    async def model_uses(self) -> Mapping[str, Use]:
        found = await self._database.run(lambda tx: tx.rows(_USES))
        return {row["tenant"]: Use(row["uses"], row["version"], row["who"], row["why"], row["since"]) for row in found}

    async def use_model(self, tenant: str, uses: Uses, version: int | None, *, who: str, why: str) -> None:
        async def work(tx: Transaction) -> None:
            await tx.run(_USE, tenant=tenant, uses=uses, version=version, who=who, why=why)
            if version is not None:
                await tx.run(_PROMOTED, tenant=tenant, version=version)
            await audit.add(
                tx,
                tenant=tenant,
                who=who,
                what="model.used",
                subject=f"model:{tenant}",
                why=why,
                after={"uses": uses, "version": version},
            )

        await self._database.run(work)

    async def add_version(
        self, tenant: str, *, outcomes: int, trained_until: datetime | None, beta: Json, evaluation: Json
    ) -> int:
        async def work(tx: Transaction) -> int:
            await tx.run(_LOCK, tenant=tenant)
            row = await tx.row(
                _ADD,
                tenant=tenant,
                outcomes=outcomes,
                trained_until=trained_until,
                beta=as_json(beta),
                evaluation=as_json(evaluation),
            )
            assert row is not None  # noqa: S101 (an insert returns its row)
            return int(row["version"])

        return await self._database.run(work)

    async def complete_version(
        self, tenant: str, version: int, *, artifact: bytes | None, sha256: str, card: str
    ) -> None:
        await self._database.run(
            lambda tx: tx.run(_COMPLETE, tenant=tenant, version=version, artifact=artifact, sha256=sha256, card=card)
        )

    async def versions(self, tenant: str) -> Sequence[ModelVersion]:
        found = await self._database.run(lambda tx: tx.rows(_VERSIONS, tenant=tenant))
        return [ModelVersion(**row) for row in found]

    async def artifact(self, tenant: str, version: int) -> bytes | None:
        row = await self._database.run(lambda tx: tx.row(_ARTIFACT, tenant=tenant, version=version))
        return None if row is None or row["artifact"] is None else bytes(row["artifact"])
