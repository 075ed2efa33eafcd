"""What is said about a recovery: the answer's message, the run's artifact, the alert's text.

Nothing here claims more than the evidence: `unknown` is told as not verified.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from upright.domain.message import Json
from upright.domain.verdict import Checked, Evidence, Status, Verdict
from upright.services.guardrails.guard import hold_reason
from upright.services.notice import Link, Notice, Part
from upright.services.ports import ActionRecord, RecoveryRecord
from upright.services.scoring import Choice, reason
from upright.services.strategies import title

if TYPE_CHECKING:
    from upright.services.acting import Acted
    from upright.services.recovery import Recovery

_IDLE = (Verdict.SKIPPED, Verdict.REFUSED, Verdict.FAILED)

VERDICTS = {
    Verdict.RECOVERED: "recovered",
    Verdict.NOT_RECOVERED: "not recovered",
    Verdict.UNKNOWN: "not verified",
    Verdict.SKIPPED: "skipped",
    Verdict.REFUSED: "refused",
    Verdict.FAILED: "failed to act",
    Verdict.RELAPSED: "relapsed",
}

RUN = "The run in Prefect"

STATUSES = {
    Status.RECOVERED: "Recovered",
    Status.NOT_RECOVERED: "Not recovered",
    Status.UNKNOWN: "Not verified",
    Status.CANCELLED: "Cancelled",
    Status.RELAPSED: "Relapsed",
    Status.RUNNING: "Running",
    Status.QUEUED: "Queued",
}


def message(status: Status, actions: Sequence[ActionRecord]) -> str:
    if status is Status.RECOVERED:
        winner = next(action for action in actions if action.verdict is Verdict.RECOVERED)
        return f"Recovery successful: {title(winner.strategy)}"
    tried = [title(action.strategy) for action in actions if action.verdict not in _IDLE]
    if status is Status.UNKNOWN:
        if all(action.directive_version is None and action.evidence is None for action in actions):
            return "Nothing was done: the operation worked when it was tried again"
        return f"Recovery not verified: {', '.join(tried)}"
    if tried:
        return f"Recovery failed: {', '.join(tried)}"
    return "Recovery failed: no strategy could be carried out"


def verdict_reason(acted: Acted, verdict: Verdict) -> str:
    """Why this verdict, in a sentence."""
    seen = _described(acted.evidence)
    parts = [acted.reason] if acted.reason else []
    if verdict is Verdict.UNKNOWN and acted.evidence is not None and acted.evidence.outcome != "inconclusive":
        seen = f"{seen}, but it had not been seen to fail before" if acted.evidence.outcome == "passed" else seen
    parts.append(_checked(acted.checks, verdict) if acted.checks else seen)
    if verdict is Verdict.RECOVERED and acted.plan is not None and not acted.plan.lasts and acted.own:
        parts.append("it is needed no longer, and was withdrawn")
    if (
        verdict is not Verdict.RECOVERED
        and acted.directive is not None
        and acted.own
        and acted.directive.scope == "process"
    ):
        parts.append(_FATES[acted.fate])
    return "; ".join(parts)


def with_evidence(acted: Acted, verdict: Verdict) -> str:
    """The same, and what had spoken for trying it."""
    why = verdict_reason(acted, verdict)
    known = acted.choice.evidence
    return f"{why}; tried for its {known}" if known else why


_FATES = {
    "withdrawn": "the change was withdrawn",
    "standing": "the change stands while others are tried",
    "kept": "the change is kept until it expires, as the runbook says",
}


def _checked(checks: Sequence[Checked], verdict: Verdict) -> str:
    told = [f"{one.name} {one.after.outcome} ({one.after.detail})" for one in checks]
    if verdict is Verdict.UNKNOWN and all(one.after.outcome == "passed" for one in checks):
        told.append("but none of them had been seen to fail before")
    return ", ".join(told)


def _described(evidence: Evidence | None) -> str:
    if evidence is None:
        return "no evidence could be had"
    how = evidence.kind.replace("_", " ")
    times = f" of {evidence.attempts} attempts" if evidence.attempts > 1 else ""
    status = f" with status {evidence.status_code}" if evidence.status_code is not None else ""
    detail = f" ({evidence.detail})" if evidence.detail else ""
    return f"{how}{times} {evidence.outcome}{status}{detail}"


def markdown(recovery: Recovery) -> str:
    event, record = recovery.event, recovery.record
    where = f" in `{event.request.method} {event.request.route}`" if event.request else ""
    lines = [
        f"# {STATUSES[record.status]}",
        "",
        f"**{_cell(record.message)}**",
        "",
        f"`{event.error.type}`{where} of service `{record.service}`, severity {record.severity.value}.",
        "",
        f"> {_cell(event.error.message) or 'no message'}",
        "",
        f"Error `{record.error_id}`, recovery `{record.id}`, runbook `{recovery.runbook.name}`.",
        "",
        *(f"> {_cell(note)}\n" for note in notes(recovery)),
        *([f"A relapse: {_cell(relapse)}", ""] if (relapse := _relapse(recovery)) else []),
        "## Why this order",
        "",
        *_order(recovery),
        "",
        "## What was done",
        "",
        "| strategy | verdict | before | after | why | ms |",
        "|---|---|---|---|---|---|",
    ]
    for action in recovery.actions:
        spread = recovery.converged.get(action.strategy)
        undone = recovery.reverted.get(action.strategy)
        why = "; ".join([action.reason, *([f"in force in {spread}"] if spread else []), *([undone] if undone else [])])
        after = action.after or (action.values if action.verdict not in _IDLE else {})
        cells = [
            f"`{action.strategy}`",
            f"**{VERDICTS[action.verdict]}**",
            _json(action.before),
            _json(after),
            _cell(why),
            f"{action.duration_ms:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if not recovery.actions:
        lines.append("| | nothing was done | | | | |")
    checked = [action for action in recovery.actions if action.checks]
    if checked:
        lines += ["", "## How it was verified", "", "| strategy | check | before | after |", "|---|---|---|---|"]
    for action in checked:
        lines += [
            f"| `{action.strategy}` | {_cell(one.name)} | {_seen(one.before)} | {_seen(one.after)} |"
            for one in action.checks
        ]
    if recovery.not_reverted:
        lines += ["", "## Not reverted", "", *(f"- {_cell(one)}" for one in recovery.not_reverted)]
    return "\n".join(lines) + "\n"


def notes(recovery: Recovery) -> list[str]:
    """What guardrails do from now on because of this recovery."""
    held = [f"{hold_reason(hold)}." for hold in recovery.guard.begun]
    return [*(one[0].upper() + one[1:] for one in held), *(f"{one}." for one in recovery.guard.demoted)]


def _order(recovery: Recovery) -> list[str]:
    ranking = recovery.ranking
    if ranking is None:
        return ["It ended before it was scored."]
    if not ranking.tried:
        return ["Nothing was tried."] if recovery.record.withheld else ["No strategy applies."]
    how = "as the runbook fixes it" if ranking.order == "fixed" else "by expected success per cost"
    return [
        f"Tried {how}, until one recovers:",
        "",
        *(_ranked(index, one) for index, one in enumerate(ranking.tried, 1)),
    ]


def _ranked(index: int, choice: Choice) -> str:
    return f"{index}. `{choice.strategy}`: {reason(choice)}"


def _relapse(recovery: Recovery) -> str:
    former = recovery.relapsed
    if former is None:
        return ""
    return f"{former.message or 'it had recovered'}, in recovery {former.id}; {former.relapse}."


def _seen(evidence: Evidence | None) -> str:
    return "" if evidence is None else _cell(f"**{evidence.outcome}** {evidence.detail}")


def _json(value: Json) -> str:
    return f"`{_cell(json.dumps(value, default=str))}`" if value else ""


def _cell(text: str) -> str:
    """Safe inside a table, a quotation or a line of emphasis."""
    return " ".join(text.replace("|", "\\|").replace("`", "'").split())


def subject(recovery: Recovery, kind: str) -> str:
    record = recovery.record
    what = f"{recovery.event.error.type} in {record.service}"
    prefix = "Escalation: " if kind == "escalation" else ""
    prefix += "Not reverted: " if recovery.not_reverted else ""
    return f"[{record.severity.value}] {prefix}{STATUSES[record.status]}: {what}"


def notice(recovery: Recovery, kind: str, links: Sequence[str]) -> Notice:
    event, record = recovery.event, recovery.record
    parts = [Part((f"{STATUSES[record.status]}. {record.message}.",))]
    if relapse := _relapse(recovery):
        parts.append(Part((f"It is a relapse: {relapse}",)))
    if recovery.not_reverted:
        # What could not be taken back comes first: someone has to see to it.
        parts.append(Part(tuple(recovery.not_reverted), "NOT REVERTED, though it did not help. See to it by hand:"))
    failed = [f"{event.error.type}: {event.error.message}"]
    if event.request:
        failed.append(f"{event.request.method} {event.request.route} ({event.request.view or 'unknown view'})")
    failed += [
        f"service {record.service}, environment {event.environment}, severity {record.severity.value}",
        f"at {event.occurred_at.isoformat(timespec='seconds')}, error {record.error_id}",
    ]
    parts.append(Part(tuple(failed), "What failed"))
    parts.append(Part(tuple(_done(recovery)) or ("nothing",), f"What was done (runbook {recovery.runbook.name})"))
    if found := notes(recovery):
        parts.append(Part(tuple(found)))
    if record.status is Status.UNKNOWN:
        why = "Nobody has seen the failed operation work again: treat it as broken until you have looked."
        parts.append(Part((why,)))
    return Notice(subject(recovery, kind), tuple(parts), tuple(Link(RUN, link) for link in links))


def _done(recovery: Recovery) -> Iterator[str]:
    for action in recovery.actions:
        yield f"{title(action.strategy)}: {VERDICTS[action.verdict]}. {action.reason}"
        if action.before or action.after:
            yield f"  before {json.dumps(action.before, default=str)}, after {json.dumps(action.after, default=str)}"
        if action.strategy in recovery.converged:
            yield f"  in force in {recovery.converged[action.strategy]}"
        if action.strategy in recovery.reverted:
            yield f"  {recovery.reverted[action.strategy]}"


def relapse(recovery: Recovery, former: RecoveryRecord, links: Sequence[str]) -> Notice:
    """To those who were told that it had recovered."""
    event, record = recovery.event, recovery.record
    return Notice(
        f"[{record.severity.value}] Relapsed: {event.error.type} in {record.service}",
        (
            Part((f"You were told: {former.message}. It did not last: {former.relapse}.",)),
            Part(
                (
                    f"{event.error.type}: {event.error.message}",
                    f"service {record.service}, error {former.error_id}, recovery {former.id}",
                ),
                "What failed",
            ),
            Part((f"What came of it now: {STATUSES[record.status]}. {record.message}.",)),
        ),
        tuple(Link(RUN, link) for link in links),
    )
