"""Rows to records."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text

from upright.adapters.store.database import Row
from upright.domain.directive import Directive
from upright.domain.severity import Severity
from upright.domain.verdict import Checked, Evidence, Status, Verdict
from upright.services.ports import ActionRecord, RecoveryRecord

ACTIONS = """
    COALESCE((SELECT jsonb_agg(to_jsonb(a) - 'recorded_at' ORDER BY a.position)
              FROM upright.action a WHERE a.recovery_id = r.id), '[]'::jsonb) AS actions"""

SEVERITY_RANK = "array_position(ARRAY[{}], r.severity)".format(", ".join(f"'{one.value}'" for one in Severity))


def select_recoveries(rest: str, columns: str = "") -> TextClause:
    """Recoveries (`r`) with their actions."""
    return text(f"SELECT r.*, {ACTIONS}{columns} FROM upright.recovery r {rest}")  # noqa: S608  # constants only


def recovery(row: Row) -> RecoveryRecord:
    return RecoveryRecord(
        id=row["id"],
        tenant=row["tenant"],
        incident_id=row["incident_id"],
        error_id=row["error_id"],
        fingerprint=row["fingerprint"],
        service=row["service"],
        runbook=row["runbook"],
        severity=Severity(row["severity"]),
        status=Status(row["status"]),
        epoch=row["epoch"],
        flow_run_id=row["flow_run_id"],
        flow_run_attempt=row["flow_run_attempt"],
        created_at=row["created_at"],
        finished_at=row["finished_at"],
        message=row["message"],
        actions=tuple(action(one) for one in row.get("actions") or ()),
        waited=row["waited"],
        withheld=row["withheld"],
        relapse_of=row["relapse_of"],
        relapse=row["relapse"],
    )


def action(row: dict[str, Any]) -> ActionRecord:
    evidence = row["evidence"]
    return ActionRecord(
        recovery_id=UUID(str(row["recovery_id"])),
        position=row["position"],
        strategy=row["strategy"],
        verdict=Verdict(row["verdict"]),
        reason=row["reason"],
        values=row["values"],
        before=row["before"],
        after=row["after"],
        evidence=None if evidence is None else Evidence.model_validate(evidence),
        score=row["score"],
        cost_s=row["cost_s"],
        duration_ms=row["duration_ms"],
        directive_version=row["directive_version"],
        propensity=row["propensity"],
        attributed=row["attributed"],
        checks=tuple(Checked.model_validate(one) for one in row["checks"]),
    )


def directive(row: Row) -> Directive:
    return Directive(
        id=row["id"],
        service=row["service"],
        strategy=row["strategy"],
        target=row["target"],
        version=row["version"],
        values=row["values"],
        ttl_s=max(0.0, float(row["ttl_s"])),
        scope=row["scope"],
        instances=row["instances"],
    )
