"""What recoveries teach, from their rows to the next order; versions of models; falling back."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb
from typer.testing import CliRunner

from upright.adapters.models import ModelLibrary
from upright.adapters.store import PostgresStore
from upright.cli.app import app
from upright.domain.verdict import Status, Verdict
from upright.services.learning import Context
from upright.services.learning.ports import ModelRefused
from upright.services.learning.scorer import Scorer
from upright.services.ports import ActionRecord
from upright.services.scoring import built_in_priors
from upright.testing.events import CANCELLED_FOR_TIMEOUT, DJANGO_OPERATIONAL_ERROR, error_event

PRIORS = built_in_priors()
PROJECT = Path(__file__).parents[2]
SHOP = Context("OperationalError", "django", severity="high")


class History:
    """Recoveries that have been, written as the service writes them."""

    def __init__(self, store: PostgresStore, url: str) -> None:
        self.store, self.url = store, url

    async def recovered(
        self,
        *verdicts: tuple[str, Verdict],
        attributed: bool = True,
        tenant: str = "default",
        fingerprint: str | None = None,
    ) -> str:
        event = error_event(DJANGO_OPERATIONAL_ERROR, measurements=CANCELLED_FOR_TIMEOUT)
        acceptance = await self.store.accept(
            tenant,
            str(uuid4()),
            event,
            fingerprint=fingerprint or str(uuid4()),
            runbook="database-error",
            severity=event.error.severity or _high(),
            cooldown_s=0,
        )
        assert acceptance.recovery is not None
        record = await self.store.begin_run(
            event.error_id, flow_run_id=uuid4(), attempt=1, runner="this", lease_s=60, runbook="database-error"
        )
        for position, (strategy, verdict) in enumerate(verdicts):
            action = ActionRecord(
                record.id, position, strategy, verdict, duration_ms=400, propensity=0.95, attributed=attributed
            )
            await self.store.record_action(action, epoch=record.epoch)
        learning = {
            "context": SHOP.as_json(),
            "candidates": [strategy for strategy, _ in verdicts],
            "propensity": 0.95,
            "predicted": {},
            "source": "beta",
        }
        success = any(verdict is Verdict.RECOVERED for _, verdict in verdicts)
        await self.store.conclude(
            record.id,
            epoch=record.epoch,
            status=Status.RECOVERED if success else Status.NOT_RECOVERED,
            message="",
            explanation={"order": "scored", "learning": learning},
        )
        return str(record.id)

    def copied(self, count: int, verdicts: list[list[tuple[str, str]]]) -> None:
        """Many at once, an hour and more ago: the one that is there, with other actions."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            [source] = connection.execute("SELECT id FROM upright.recovery LIMIT 1").fetchone() or [None]
            for index in range(count):
                actions = verdicts[index % len(verdicts)]
                recovered = any(verdict == "recovered" for _, verdict in actions)
                context = replace(SHOP, service=("django", "mail")[index % 2]).as_json()
                learning = {
                    "context": context, "candidates": [one for one, _ in actions], "propensity": 0.95, "predicted": {},
                }  # fmt: skip
                [copy] = connection.execute(
                    """INSERT INTO upright.recovery (id, tenant, incident_id, error_id, fingerprint, service, runbook,
                           severity, status, explanation, finished_at)
                       SELECT gen_random_uuid(), tenant, incident_id, error_id, fingerprint, service, runbook, severity,
                           %s, %s, now() - make_interval(secs => %s) FROM upright.recovery WHERE id = %s
                       RETURNING id""",
                    (
                        "recovered" if recovered else "not_recovered",
                        Jsonb({"order": "scored", "learning": learning}),
                        3600 + count - index,
                        source,
                    ),
                ).fetchone() or [None]
                with connection.cursor() as cursor:
                    cursor.executemany(
                        """INSERT INTO upright.action (recovery_id, position, strategy, verdict, duration_ms)
                           VALUES (%s, %s, %s, %s, 400)""",
                        [(copy, place, *one) for place, one in enumerate(actions)],
                    )


def _high() -> Any:
    from upright.domain.severity import Severity

    return Severity.HIGH


@pytest.fixture
def history(store: PostgresStore, database_url: str) -> History:
    return History(store, database_url)


@pytest.fixture
def library(store: PostgresStore, tmp_path: Path) -> ModelLibrary:
    return ModelLibrary(store, tmp_path / "models", PRIORS)


@pytest.fixture
def scorer(store: PostgresStore, library: ModelLibrary) -> Scorer:
    return Scorer(store, library, PRIORS)


def evidence(scorer: Scorer, strategy: str, tenant: str = "default") -> str:
    return scorer.learned(tenant).estimate(SHOP, strategy).evidence


MIXED = [
    [("cache_clear", "recovered")],
    [("cache_clear", "not_recovered"), ("timeout_increase", "recovered")],
    [("cache_clear", "recovered")],
    [("timeout_increase", "not_recovered"), ("cache_clear", "not_recovered")],
]


async def test_the_first_outcome_changes_the_next_estimate(history: History, scorer: Scorer) -> None:
    await scorer.refresh()
    before = scorer.learned("default").estimate(SHOP, "timeout_increase")
    await history.recovered(("timeout_increase", Verdict.NOT_RECOVERED))
    await scorer.refresh()
    after = scorer.learned("default").estimate(SHOP, "timeout_increase")
    assert (before.evidence, after.evidence) == ("", "0 of 1 in this service")
    assert after.success_rate < before.success_rate
    assert after.cost_s < before.cost_s


async def test_what_was_not_verified_or_not_ours_teaches_nothing(history: History, scorer: Scorer) -> None:
    await history.recovered(("timeout_increase", Verdict.UNKNOWN))
    await history.recovered(("retry", Verdict.SKIPPED))
    await history.recovered(("timeout_increase", Verdict.RECOVERED), attributed=False)
    await scorer.refresh()
    assert evidence(scorer, "timeout_increase") == ""


async def test_a_relapse_turns_a_success_into_a_failure(history: History, scorer: Scorer) -> None:
    await history.recovered(("timeout_increase", Verdict.RECOVERED), fingerprint="the same")
    await scorer.refresh()
    assert evidence(scorer, "timeout_increase") == "1 of 1 in this service"
    await history.recovered(("timeout_increase", Verdict.RECOVERED), fingerprint="the same")
    await scorer.refresh()
    assert evidence(scorer, "timeout_increase") == "1 of 2 in this service"


async def test_a_retry_that_is_needed_again_has_succeeded_all_the_same(history: History, scorer: Scorer) -> None:
    for _ in range(2):
        await history.recovered(("retry", Verdict.RECOVERED), fingerprint="the same")
    await scorer.refresh()
    assert evidence(scorer, "retry") == "2 of 2 in this service"


async def test_an_error_of_a_process_without_the_change_is_no_failure_of_it(history: History, scorer: Scorer) -> None:
    recovery = UUID(await history.recovered(("pool_increase", Verdict.RECOVERED), fingerprint="the same"))
    with psycopg.connect(history.url, autocommit=True) as connection:
        connection.execute(
            """INSERT INTO upright.directive (id, tenant, service, strategy, target, version, scope, recovery_id,
                   expires_at)
               SELECT gen_random_uuid(), tenant, service, 'pool_increase', 'default', 7, 'process', id,
                   now() + interval '1 hour' FROM upright.recovery WHERE id = %s""",
            (recovery,),
        )
        connection.execute("UPDATE upright.action SET directive_version = 7 WHERE recovery_id = %s", (recovery,))
    event = error_event(DJANGO_OPERATIONAL_ERROR, desired_version=6)
    joined = await history.store.accept(
        "default", str(uuid4()), event, fingerprint="the same", runbook="database-error", severity=_high(),
        cooldown_s=0,
    )  # fmt: skip
    assert joined.role == "joined_closed"
    await scorer.refresh()
    assert evidence(scorer, "pool_increase") == "1 of 1 in this service"


async def test_tenants_learn_nothing_of_each_other(history: History, scorer: Scorer) -> None:
    await history.recovered(("timeout_increase", Verdict.RECOVERED), tenant="other")
    await scorer.refresh()
    assert evidence(scorer, "timeout_increase") == ""
    assert evidence(scorer, "timeout_increase", "other") == "1 of 1 in this service"


async def test_old_and_new_outcomes_are_each_counted_once(
    history: History, scorer: Scorer, store: PostgresStore, library: ModelLibrary
) -> None:
    await history.recovered(("retry", Verdict.RECOVERED))
    history.copied(8, MIXED)
    await scorer.refresh()
    await scorer.refresh()
    await history.recovered(("retry", Verdict.RECOVERED))
    await scorer.refresh()
    fresh = Scorer(store, library, PRIORS)
    await fresh.refresh()
    for strategy in ("retry", "cache_clear", "timeout_increase"):
        assert evidence(scorer, strategy) == evidence(fresh, strategy)
    assert evidence(scorer, "retry") == "2 of 2 in this service"


async def test_learning_that_is_off_leaves_the_priors(
    history: History, store: PostgresStore, library: ModelLibrary
) -> None:
    await history.recovered(("timeout_increase", Verdict.NOT_RECOVERED))
    off = Scorer(store, library, PRIORS, learning="off")
    await off.refresh()
    assert evidence(off, "timeout_increase") == ""
    assert off.learned("default").source == "priors"
    decision = off.learned("default").decide(SHOP, ["cache_clear", "timeout_increase"], draw=0.0)
    assert not decision.explored


# Versions


async def test_too_little_makes_a_version_without_a_challenger(history: History, library: ModelLibrary) -> None:
    await history.recovered(("retry", Verdict.RECOVERED))
    version, trained = await library.train("default")
    assert (version.version, version.outcomes, version.sha256) == (1, 1, "")
    assert trained.evaluation.refusals == ("1 outcomes, 1 of them successes; it takes 50, 10 of each kind",)
    with pytest.raises(ModelRefused, match="has no challenger"):
        await library.promote("default", 1, who="me", force=True)


async def test_a_version_is_trained_kept_promoted_and_scores(
    history: History, library: ModelLibrary, scorer: Scorer, tmp_path: Path
) -> None:
    await history.recovered(("retry", Verdict.RECOVERED))
    history.copied(200, MIXED)
    version, trained = await library.train("default")
    assert version.outcomes == trained.outcomes == 301
    files = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert files == ["score-default-1.beta.json", "score-default-1.md", "score-default-1.skops"]
    assert "# Scoring model 1" in version.card
    assert "| `cache_clear` | 100 | 200 | 80% |" in version.card
    await library.promote("default", 1, who="me", force=True)
    await scorer.refresh()
    assert scorer.learned("default").source == "model 1"
    assert (
        "model 1 says" in scorer.learned("default").decide(SHOP, ["cache_clear", "timeout_increase"]).order[0].evidence
    )
    await library.promote("default", 1, who="me", force=True)


async def test_the_gate_is_obeyed(history: History, library: ModelLibrary, store: PostgresStore) -> None:
    await history.recovered(("retry", Verdict.RECOVERED))
    history.copied(120, MIXED)
    await library.train("default")
    with pytest.raises(ModelRefused, match="the gate refuses model 1: effective sample size"):
        await library.promote("default", 1, who="me")
    assert await store.model_uses() == {}


@pytest.fixture
async def promoted(history: History, library: ModelLibrary) -> ModelLibrary:
    await history.recovered(("retry", Verdict.RECOVERED))
    history.copied(120, MIXED)
    for version in (1, 2):
        await library.train("default")
        await library.promote("default", version, who="me", force=True)
    return library


async def test_a_damaged_file_is_replaced_by_the_databases_copy_loudly(
    promoted: ModelLibrary, scorer: Scorer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "models" / "score-default-2.skops").write_bytes(b"not a model")
    with caplog.at_level(logging.ERROR, "upright.learning"):
        await scorer.refresh()
    assert scorer.learned("default").source == "model 2"
    assert "is not the file that was trained" in caplog.text


async def test_without_a_good_copy_the_last_good_version_scores_loudly(
    promoted: ModelLibrary, scorer: Scorer, tmp_path: Path, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "models" / "score-default-2.skops").unlink()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE upright.model_version SET artifact = 'damaged' WHERE version = 2")
    with caplog.at_level(logging.ERROR, "upright.learning"):
        await scorer.refresh()
    assert scorer.learned("default").source == "model 1"
    assert "Tenant default scores with model 1 instead of model 2." in caplog.text
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE upright.model_version SET artifact = 'damaged'")
    (tmp_path / "models" / "score-default-1.skops").unlink()
    fresh = Scorer(scorer._store, promoted, PRIORS)  # pyright: ignore[reportPrivateUsage]
    await fresh.refresh()
    assert fresh.learned("default").source == "beta"
    assert "missing or damaged" in fresh.problems()["default"]


async def test_a_model_that_breaks_down_is_withdrawn_for_every_process(
    promoted: ModelLibrary, scorer: Scorer, history: History, store: PostgresStore
) -> None:
    await scorer.refresh()
    assert scorer.learned("default").source == "model 2"
    upside_down = [[("cache_clear", "not_recovered")]]
    with psycopg.connect(history.url, autocommit=True) as connection:
        connection.execute("UPDATE upright.recovery SET finished_at = finished_at - interval '2 days'")
        connection.execute("UPDATE upright.model_version SET trained_until = trained_until - interval '2 days'")
    history.copied(260, upside_down)
    fresh = Scorer(store, promoted, PRIORS)
    await fresh.refresh()
    assert fresh.learned("default").source == "beta"
    use = (await store.model_uses())["default"]
    assert use.uses == "beta"
    assert use.why.startswith("drift: its Brier score over the last 200 outcomes is")
    await scorer.refresh()
    assert scorer.learned("default").source == "beta"


async def test_a_rollback_reaches_the_scorer(promoted: ModelLibrary, scorer: Scorer, store: PostgresStore) -> None:
    await scorer.refresh()
    await store.use_model("default", "priors", None, who="me", why="to be sure")
    await scorer.refresh()
    assert scorer.learned("default").source == "priors"
    assert evidence(scorer, "cache_clear") == ""


# The command line


def test_the_command_line_shows_trains_and_chooses(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPRIGHT_DATABASE_URL", database_url)
    monkeypatch.chdir(tmp_path)
    runner, project = CliRunner(), tmp_path / "ops"
    assert runner.invoke(app, ["init", str(project)]).exit_code == 0
    assert not (project / "models" / "results").exists()

    def upright(*arguments: str) -> Any:
        return runner.invoke(app, ["model", *arguments, "--project", str(project)])

    shown = upright("status").stdout
    assert "Tenant default scores with beta." in shown
    assert "No versions; Beta learns all the same." in shown
    assert "The gate refuses it:" in upright("train").stdout
    found = json.loads(upright("status", "--json").stdout)
    assert [one["version"] for one in found["versions"]] == [1]
    assert (project / "models" / "score-default-1.md").is_file()
    assert isinstance(upright("promote", "1").exception, ModelRefused)
    assert "from now on" in upright("rollback", "--to", "priors").stdout
    assert json.loads(upright("status", "--json").stdout)["uses"] == "priors"
    assert "0 outcomes" in upright("evaluate").stdout
