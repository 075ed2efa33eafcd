"""The five faults: how each is made, what must come of it, and where that is looked up."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stage import SHOP, UNPROTECTED, Stage, eventually
from timeline import Timeline

from upright.adapters.stack.shop import ShopAddresses

CORRUPT = b"\x80\x05\x95not a pickle any more"
CROWD_CLIENTS = 16
CROWD_S = 6.0
POOL_MAX = 2
WORKERS = 2


@dataclass
class Outcome:
    title: str
    without: str = "–"
    """What the shop without recovery answered when the other's repair was verified."""
    answer: str = "–"
    strategy: str = "–"
    flow_state: str = "–"
    checks: dict[str, bool] = field(default_factory=dict[str, bool])


@dataclass(frozen=True)
class Fault:
    name: str
    title: str
    play: Callable[[Stage, Timeline], Outcome]


def pool(stage: Stage, timeline: Timeline) -> Outcome:
    """Sixteen clients on views that hold a connection for 0.3 s, where a worker has two."""
    outcome = Outcome(POOL)
    timeline.say(f"{CROWD_CLIENTS} clients for {CROWD_S:g} s on both shops, two views, pools of {POOL_MAX} connections")
    connections = _Sampler(stage)
    with connections:
        crowds = {one: _crowd(one) for one in (stage.shop, stage.unprotected)}
        tallies = {one: json.loads(crowd.communicate()[0]) for one, crowd in crowds.items()}
    with_recovery, without = tallies[stage.shop], tallies[stage.unprotected]
    outcome.without = f"{without['failed']} of {without['requests']} failed"
    outcome.answer = f"{with_recovery['failed']} of {with_recovery['requests']} failed"
    timeline.say(f"recovery off: {outcome.without}, the last at {without['last_failure_s']} s", style="red")
    timeline.say(
        f"recovery on: {outcome.answer}, the last at {with_recovery['last_failure_s']} s; "
        f"then {with_recovery['worked_since']} worked in a row",
        style="green",
    )
    example = with_recovery["example"]
    if example:
        timeline.answered(f"GET {example['path']}", example["status"], example["body"])
    timeline.check(
        "without recovery it fails to the end of the load",
        (without["last_failure_s"] or 0) > CROWD_S - 1.5 and without["failed"] > 10,
    )
    timeline.check(
        "with recovery the failures stop while the load goes on",
        with_recovery["failed"]
        and with_recovery["last_failure_s"] < CROWD_S / 2
        and with_recovery["worked_since"] > 50,
    )
    directives = stage.service("SELECT * FROM upright.directive WHERE service = 'shop' AND strategy = 'pool_increase'")
    timeline.check(f"the pool was raised once, for all views ({len(directives)} directive)", len(directives) == 1)
    if directives:
        size = directives[0]["values"].get("max_size")
        applied = _applied(stage, directives[0]["id"], WORKERS)
        timeline.check(f"{len(applied)} of {WORKERS} workers measured their pool at {size}", len(applied) == WORKERS)
    most, most_without = connections.most("shop"), connections.most("unprotected-shop")
    timeline.check(
        f"pg_stat_activity: at most {most} connections of the shop, {most_without} of the unprotected one",
        most > WORKERS * POOL_MAX + 1 and most > most_without,
    )
    if example and example["body"].get("error"):
        _check_recovered(stage, timeline, outcome, example["body"], "pool_increase")
    else:
        timeline.check("a failed request told of its recovery", False)
    return outcome


def report(stage: Stage, timeline: Timeline) -> Outcome:
    """A query of 0.7 s, where the database allows 0.5 s."""
    outcome, path = Outcome(REPORT), "/reports/sales/"
    _fails_without(stage, timeline, outcome, path)
    body = _fails_and_recovers(stage, timeline, outcome, path)
    _fails_without(stage, timeline, outcome, path, later=True)
    recovery = _check_recovered(stage, timeline, outcome, body, "timeout_increase")
    if recovery:
        actions = {action["strategy"]: action for action in stage.actions_of(recovery["id"])}
        timeline.check(
            "pool_increase was skipped: nothing waits for a connection",
            "pool_increase" not in actions or actions["pool_increase"]["verdict"] == "skipped",
        )
        directives = stage.service(
            "SELECT * FROM upright.directive WHERE recovery_id = %s AND strategy = 'timeout_increase'", recovery["id"]
        )
        expires = directives[0].get("expires_at") if directives else None
        timeline.check(
            f"the longer timeout expires by itself ({expires:%H:%M:%S})" if expires else "it expires", expires
        )
        applied = _applied(stage, directives[0]["id"], WORKERS) if directives else []
        timeline.check(f"{len(applied)} of {WORKERS} workers apply it", len(applied) == WORKERS)
    status, answer = stage.ask(stage.shop, path)
    timeline.answered(f"GET {path} again", status, answer)
    timeline.check("the report works now", status == 200)
    return outcome


def cache(stage: Stage, timeline: Timeline) -> Outcome:
    """Rubbish over one cached page, written past the cache."""
    outcome, path = Outcome(CACHE), "/catalogue/books/"
    kept = {"shop:1:prices:eur": b"1", "warehouse:lock": b"held by the warehouse"}
    with stage.redis() as client:
        for who in (stage.shop, stage.unprotected):
            stage.ask(who, path)
            stage.ask(who, "/catalogue/tools/")
        corrupt = ["shop:1:catalogue:books", f"{UNPROTECTED}:1:catalogue:books"]
        timeline.check("both pages are cached", client.exists(*corrupt) == len(corrupt))
        for key, value in {**dict.fromkeys(corrupt, CORRUPT), **kept}.items():
            client.set(key, value)
        timeline.say(f"wrote over {' and '.join(corrupt)}")
        _fails_without(stage, timeline, outcome, path)
        body = _fails_and_recovers(stage, timeline, outcome, path)
        _fails_without(stage, timeline, outcome, path, later=True)
        timeline.check("the error is the real one", body.get("error", {}).get("type") in UNREADABLE)
        timeline.check("Redis: the corrupt entry is gone", client.get(corrupt[0]) != CORRUPT)
        timeline.check(
            "Redis: another key of the cache and one that isn't the cache's are untouched",
            all(client.get(key) == value for key, value in kept.items()),
        )
        timeline.check("Redis: the unprotected shop's entry is as corrupt as before", client.get(corrupt[1]) == CORRUPT)
    _check_recovered(stage, timeline, outcome, body, "cache_clear")
    status, answer = stage.ask(stage.shop, path)
    timeline.answered(f"GET {path} again", status, answer)
    timeline.check("the page works now", status == 200)
    return outcome


def upstream(stage: Stage, timeline: Timeline) -> Outcome:
    """A carrier that resets its next two connections."""
    outcome, path = Outcome(UPSTREAM), "/shipping/quote/"
    _arm(stage, timeline)
    _fails_without(stage, timeline, outcome, path)
    _fails_without(stage, timeline, outcome, path, later=True)
    _arm(stage, timeline)
    body = _fails_and_recovers(stage, timeline, outcome, path)
    recovery = _check_recovered(stage, timeline, outcome, body, "retry")
    if recovery:
        evidence = [
            action["evidence"] or {} for action in stage.actions_of(recovery["id"]) if action["strategy"] == "retry"
        ]
        attempts = evidence[0].get("attempts", 0) if evidence else 0
        timeline.check(f"the second repetition worked ({attempts} attempts)", attempts == 2)
    carrier = stage.http.get(f"{stage.shop.engines.upstream_url}/status").json()
    timeline.check(
        f"the carrier counted {carrier['calls']} calls, {carrier['resets_left']} resets left", carrier["calls"] == 3
    )
    return outcome


def bug(stage: Stage, timeline: Timeline) -> Outcome:
    """A view that can't work, whatever is done around it."""
    outcome, path = Outcome(BUG), "/basket/total/?country=IS"
    mails = len(stage.mails())
    _fails_without(stage, timeline, outcome, path)
    status, body = stage.ask(stage.shop, path)
    timeline.answered(f"GET {path}", status, body)
    report = body.get("recovery", {})
    outcome.answer = str(report.get("status", "–"))
    error_id = body.get("error", {}).get("error_id", "")
    recovery = eventually(lambda: stage.recovery_of(error_id)) if error_id else None
    timeline.check("no success is claimed", report.get("success") is False and status >= 400)
    timeline.check("the service's database says not recovered", recovery and recovery["status"] == "not_recovered")
    timeline.check(
        "no action claims to have repaired it",
        recovery and not any(one["verdict"] == "recovered" for one in stage.actions_of(recovery["id"])),
    )
    rows = eventually(lambda: _error_log(stage, error_id))
    timeline.check("ErrorLog: unresolved", rows and not rows[0]["resolved"])
    timeline.check("ErrorLog: recovery_success is false", rows and rows[0]["context"].get("recovery_success") is False)
    told = eventually(lambda: [mail for mail in stage.mails()[:] if error_id and error_id in _text(mail)])
    if told:
        timeline.say(f"mailbox: {told[0]['Subject']} → {told[0]['To']}", style="cyan")
    timeline.check(
        f"the alert's e-mail arrived ({len(stage.mails()) - mails} new)",
        any("error-team@shop.example" in str(mail["To"]) for mail in told),
    )
    if recovery:
        _check_run(stage, timeline, outcome, recovery, {"score", "alert"}, completed=False)
    return outcome


POOL = "Pool exhausted"
REPORT = "Statement timeout"
CACHE = "Corrupt cache entry"
UPSTREAM = "Flaky upstream"
BUG = "A bug"
UNREADABLE = ("UnpicklingError", "EOFError", "PickleError", "ValueError")
FAULTS = {
    "pool": Fault(POOL, "1. The connection pool runs dry", pool),
    "report": Fault(REPORT, "2. A report outgrows its statement timeout", report),
    "cache": Fault(CACHE, "3. A cached page is corrupt", cache),
    "upstream": Fault(UPSTREAM, "4. An upstream hangs up twice", upstream),
    "bug": Fault(BUG, "5. A bug that nothing can repair", bug),
}


class _Sampler:
    """The most connections that each shop had open, as its PostgreSQL says, while this is entered."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._most: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def most(self, application: str) -> int:
        return self._most.get(application, 0)

    def _sample(self) -> None:
        query = """SELECT application_name AS name, count(*) AS open FROM pg_stat_activity
                   WHERE backend_type = 'client backend' GROUP BY 1"""
        while not self._ended.wait(0.1):
            for row in self._stage.shop_rows(query):
                self._most[row["name"]] = max(self._most.get(row["name"], 0), row["open"])


def _crowd(who: ShopAddresses) -> subprocess.Popen[str]:
    command = [sys.executable, str(SHOP / "crowd.py"), who.url, str(CROWD_CLIENTS), str(CROWD_S)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own program


def _arm(stage: Stage, timeline: Timeline) -> None:
    stage.http.post(f"{stage.shop.engines.upstream_url}/arm", params={"resets": 2}).raise_for_status()
    timeline.say("the carrier will reset its next two connections")


def _fails_without(stage: Stage, timeline: Timeline, outcome: Outcome, path: str, *, later: bool = False) -> None:
    status, body = stage.ask(stage.unprotected, path)
    timeline.answered("recovery off", status, body)
    when = "still fails" if later else "fails"
    attempted = body.get("recovery", {}).get("attempted", False)
    timeline.check(f"without recovery it {when}", status >= 400 and not attempted)
    outcome.without = f"{status} {body.get('error', {}).get('type', '')}"


def _fails_and_recovers(stage: Stage, timeline: Timeline, outcome: Outcome, path: str) -> dict[str, Any]:
    status, body = stage.ask(stage.shop, path)
    timeline.answered(f"GET {path}", status, body)
    outcome.answer = str(body.get("recovery", {}).get("status", status))
    return body


def _check_recovered(
    stage: Stage, timeline: Timeline, outcome: Outcome, body: dict[str, Any], strategy: str
) -> dict[str, Any] | None:
    """The answer's claim against the service's database, the shop's ErrorLog and Prefect."""
    outcome.strategy = strategy
    report, error_id = body.get("recovery", {}), body.get("error", {}).get("error_id")
    timeline.check(
        "the answer says that this very request works now", report.get("attempted") and report.get("success")
    )
    if not error_id:
        return None
    recovery = eventually(lambda: stage.recovery_of(error_id))
    timeline.check("the service's database says recovered", recovery and recovery["status"] == "recovered")
    if not recovery:
        return None
    actions = stage.actions_of(recovery["id"])
    recovered = [one for one in actions if one["verdict"] == "recovered"]
    names = [one["strategy"] for one in recovered]
    timeline.check(f"by {strategy} ({', '.join(names) or 'none'})", names == [strategy])
    evidence = (recovered[0]["evidence"] or {}) if recovered else {}
    kind = "retry" if strategy == "retry" else "replay"
    timeline.check(
        f"on the evidence of a {evidence.get('kind')} that {evidence.get('outcome')}",
        evidence.get("kind") == kind and evidence.get("outcome") == "passed",
    )
    rows = eventually(lambda: [row for row in _error_log(stage, error_id) if row["resolved"]])
    timeline.check(
        "ErrorLog: resolved, by that strategy", rows and rows[0]["context"].get("recovery_strategy") == strategy
    )
    _check_run(stage, timeline, outcome, recovery, {"score", strategy, f"verify {strategy}"}, completed=True)
    return recovery


def _check_run(
    stage: Stage,
    timeline: Timeline,
    outcome: Outcome,
    recovery: dict[str, Any],
    wanted: set[str],
    *,
    completed: bool,
) -> None:
    def ended() -> dict[str, Any] | None:
        run = stage.flow_run(recovery["flow_run_id"])
        return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    run = eventually(ended) or stage.flow_run(recovery["flow_run_id"])
    outcome.flow_state = run["state_name"]
    name = stage.deployment(run["deployment_id"])["name"] if run.get("deployment_id") else None
    timeline.check(f"Prefect: run “{run['name']}” under deployment {name}", name == recovery["runbook"])
    expected = "COMPLETED" if completed else "FAILED"
    timeline.check(f"Prefect: it ended as {run['state_name']}", run["state_type"] == expected)

    def recorded() -> list[dict[str, Any]]:
        tasks = stage.task_runs(recovery["flow_run_id"])
        return tasks if wanted <= {task["name"] for task in tasks} else []

    tasks = eventually(recorded)
    timeline.check(
        f"Prefect: its tasks are recorded ({', '.join(task['name'] for task in tasks) or 'not all of them'})", tasks
    )


def _applied(stage: Stage, directive_id: object, count: int) -> list[dict[str, Any]]:
    query = "SELECT * FROM upright.acknowledgement WHERE directive_id = %s AND status = 'applied'"

    def enough() -> bool:
        return len(stage.service(query, directive_id)) >= count

    eventually(enough)
    return stage.service(query, directive_id)


def _error_log(stage: Stage, error_id: str) -> list[dict[str, Any]]:
    return stage.shop_rows("SELECT * FROM error_logging_errorlog WHERE error_id = %s", error_id)


def _text(mail: Any) -> str:
    """Subject and every part: the message has text and HTML."""
    parts = [part.get_payload(decode=True) or b"" for part in mail.walk()]
    return "\n".join([str(mail["Subject"]), *(part.decode(errors="replace") for part in parts)])
