"""platforms.yaml, and the two strategies that act on what it names."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import pytest
from ruamel.yaml import YAML

from upright.adapters import platforms, runbook_schema
from upright.cli.doctor import examine
from upright.config import Settings
from upright.domain.platform import GunicornService, HealthRules, SupervisorService
from upright.domain.verdict import Evidence, Verdict, judge
from upright.errors import PlatformsError
from upright.services.ports import Instance, Process, ReplicaState, Scaling
from upright.services.strategies import STRATEGIES, Fleet
from upright.services.strategies.base import PlatformState
from upright.testing.events import error_event

ROOT = Path(__file__).parents[2]
MEBIBYTE = 1024 * 1024
TIMEOUT = ("builtins.TimeoutError", "builtins.OSError")
GOOD = """\
services:
  django:
    platform: gunicorn
    pidfile: gunicorn.pid
    health_url: http://127.0.0.1:8000/healthz
    max_processes: 8
  reports:
    platform: supervisor
    url: unix:///run/supervisor.sock
    max_processes: 4
    health_url: http://127.0.0.1:9000/
    replicas:
      - {name: one, group: reports-one}
      - {name: two, group: reports-two, health_url: "http://127.0.0.1:9001/"}
"""


def write(project: Path, text: str) -> Path:
    (project / "platforms.yaml").write_text(text)
    return project


def test_services_are_read_with_their_replicas(tmp_path: Path) -> None:
    found = platforms.load(write(tmp_path, GOOD))
    assert set(found) == {("default", "django"), ("default", "reports")}
    assert [one.name for one in found["default", "django"].replicas] == ["main"]
    reports = found["default", "reports"].replicas
    assert [(one.name, one.health.url) for one in reports] == [  # type: ignore[union-attr]
        ("one", "http://127.0.0.1:9000/"),
        ("two", "http://127.0.0.1:9001/"),
    ]


def test_without_the_file_there_are_none(tmp_path: Path) -> None:
    assert platforms.load(tmp_path) == {}


def test_the_shipped_file_names_none() -> None:
    assert platforms.load(ROOT) == {}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("gunicorn\n", "uwsgi\n", ":3: unknown platform 'uwsgi'; allowed: gunicorn, supervisor"),
        ("    platform: gunicorn\n", "", ":2: 'platform' is missing; allowed: gunicorn, supervisor"),
        ("    max_processes: 8\n", "", ":2: 'max_processes' is missing"),
        ("max_processes: 8", "max_processes: 0", ":6: services.django.max_processes: "),
        ("pidfile:", "pid_file:", ":4: unknown key 'pid_file'; did you mean 'pidfile'?"),
        ("    pidfile: gunicorn.pid\n", "", ":2: services.django: replica 'main': either `pidfile` or `pid`"),
        ("    pidfile: gunicorn.pid\n", "    pidfile: x\n    pid: 7\n", "either `pidfile` or `pid`"),
        ("http://127.0.0.1:8000/healthz", "127.0.0.1:8000", ":5: services.django.health_url: "),
        ("name: two", "name: one", "each replica has a name of its own; repeated: one"),
        (", group: reports-one", "", "replica 'one': both `url` of the supervisord and `group` are needed"),
        ("group: reports-one", "groop: reports-one", ":13: unknown key 'groop'; did you mean 'group'?"),
        ("services:", "service:", ":1: unknown key 'service'; did you mean 'services'?"),
        ("    max_processes: 8", "    max_processes: 8\n    max_processes: 9", "'max_processes' stands twice"),
        ("    max_processes: 8", "    max_processes: 8\n    check_command: []", "a command has one word at least"),
        (
            "    max_processes: 8",
            "    max_processes: 8\n    health: {interval: 3}",
            "unknown key 'interval'; did you mean",
        ),
    ],
)
def test_a_mistake_is_told_with_file_line_and_what_is_allowed(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in GOOD
    with pytest.raises(PlatformsError) as caught:
        platforms.load(write(tmp_path, GOOD.replace(old, new, 1)))
    assert str(tmp_path / "platforms.yaml") in str(caught.value)
    assert told in str(caught.value)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("pidfile:", "pid_file:").replace("max_processes: 4", "max_processes: many")
    with pytest.raises(PlatformsError) as caught:
        platforms.load(write(tmp_path, text))
    assert len(caught.value.problems) >= 2


@pytest.mark.parametrize("text", ["", "- django\n", "services: [django]\n", "services:\n  django: gunicorn\n"])
def test_a_file_of_another_form_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(PlatformsError):
        platforms.load(write(tmp_path, text))


def test_the_editors_schema_fits(tmp_path: Path) -> None:
    schema = runbook_schema.schema("platforms.json")
    jsonschema.validate(YAML(typ="safe").load(GOOD), schema)
    jsonschema.validate(YAML(typ="safe").load(ROOT / "platforms.yaml"), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"services": {"x": {"platform": "uwsgi"}}}, schema)


@pytest.mark.parametrize("model", [GunicornService, SupervisorService, HealthRules])
def test_every_key_is_documented(model: Any) -> None:
    page = (ROOT / "docs" / "platforms.md").read_text()
    assert [name for name in model.model_fields if f"| `{name}` |" not in page] == []


def test_doctor_says_what_can_not_be_reached(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    finding = next(one for one in examine(Settings(project=tmp_path)) if one.check == "Platforms")
    assert finding.status == "failed"
    assert "django (main): gunicorn does not run: pidfile" in finding.detail
    assert "reports (one): supervisor at unix:///run/supervisor.sock does not answer" in finding.detail
    write(tmp_path, GOOD.replace("gunicorn\n", "uwsgi\n"))
    finding = next(one for one in examine(Settings(project=tmp_path)) if one.check == "Platforms")
    assert "unknown platform" in finding.detail


# Strategies


def replica(*sizes_mb: int, name: str = "main", available_mb: int = 4000, started_at: float = 0.0) -> ReplicaState:
    processes = tuple(Process(100 + index, started_at, size * MEBIBYTE) for index, size in enumerate(sizes_mb))
    return ReplicaState(name, processes, "1:1", available_mb * MEBIBYTE)


def fleet(*replicas: ReplicaState, most: float = 3.0, auto: bool = True, **changes: Any) -> Fleet:
    settings: dict[str, object] = {"auto_scale_on_error": auto, "max_scale_factor": most}
    instance = Instance("host:1:boot", "django", 0, {}, {}, settings, datetime.now(UTC))
    return Fleet([instance], platform=PlatformState(replicas, **{"max_processes": 8, "probed": True, **changes}))


def decide(strategy: str, event: Any, fleet: Fleet, **parameters: Any) -> Any:
    """The plan, or why there is none."""
    one = STRATEGIES[strategy]
    given = one.parameters(**parameters)
    return one.precondition(event, fleet, given) or one.plan(event, fleet, given)


@pytest.mark.parametrize(
    ("count", "factor", "most", "max_processes", "wanted"),
    [(2, 1.5, 3.0, 8, 3), (3, 1.5, 3.0, 8, 5), (2, 3.0, 2.0, 8, 4), (4, 2.0, 3.0, 6, 6), (1, 1.5, 2.0, 8, 2)],
)
def test_the_number_of_processes_within_all_bounds(
    count: int, factor: float, most: float, max_processes: int, wanted: int
) -> None:
    here = fleet(replica(*[50] * count), most=most, max_processes=max_processes)
    plan = decide("resource_scale", error_event(TIMEOUT), here, scale_factor=factor)
    assert plan.values == {"processes": {"main": wanted}}
    assert f"main from {count} to {wanted}" in plan.why


def test_a_factor_counts_from_the_start() -> None:
    scaling = Scaling("default", "django", "main", 2, 3, "1:1", uuid4())
    here = fleet(replica(50, 50, 50), scalings=[scaling])
    assert decide("resource_scale", error_event(TIMEOUT), here, scale_factor=2.0).values["processes"] == {"main": 4}
    # The manager was started anew: what was added is gone, and this is the start.
    later = fleet(replace(replica(50, 50, 50), incarnation="2:2"), scalings=[scaling])
    assert decide("resource_scale", error_event(TIMEOUT), later, scale_factor=2.0).values["processes"] == {"main": 6}


@pytest.mark.parametrize(
    ("here", "parameters", "told"),
    [
        (Fleet(), {}, "no entry in platforms.yaml"),
        (fleet(ReplicaState("main", problem="gunicorn does not run")), {}, "gunicorn does not run"),
        (fleet(replica(50), auto=False), {}, "AUTO_SCALE_ON_ERROR"),
        (fleet(replica(50, 50), most=1.4), {}, "MAX_SCALE_FACTOR is 1.4"),
        (fleet(replica(50, 50), max_processes=2), {}, "max_processes 2"),
        (fleet(replica(500, 500, available_mb=300)), {}, "need some 500 MiB of memory, and the host has 300 left"),
        (fleet(replica(50, 50)), {"auto_scale": False}, "it would be: processes of main from 2 to 3"),
        (fleet(replica(50, 50)), {"resource_type": "memory"}, "no process has grown"),
    ],
)
def test_why_nothing_is_added(here: Fleet, parameters: dict[str, Any], told: str) -> None:
    assert told in decide("resource_scale", error_event(TIMEOUT), here, **parameters)


def test_an_error_of_memory_adds_no_process_whatever_the_runbook_says() -> None:
    plan = decide("resource_scale", error_event(("builtins.MemoryError",)), fleet(replica(100, 400, 120)))
    assert plan.target == "recycle"
    assert plan.values == {"recycle": {"main": [101]}}


def test_processes_that_have_all_grown_are_told_by_the_limit() -> None:
    here = fleet(replica(700, 710, 400), max_memory_mb=600)
    plan = decide("resource_scale", error_event(TIMEOUT), here, resource_type="memory", scale_factor=9)
    assert plan.values == {"recycle": {"main": [101, 100]}}


def test_a_restart_is_for_processes_that_were_there_when_it_failed() -> None:
    event = error_event(TIMEOUT)
    assert decide("service_restart", event, fleet(replica(50, 50))).values == {
        "graceful": True,
        "timeout_s": 30,
        "health_check": True,
    }
    newer = fleet(replica(50, 50, started_at=event.occurred_at.timestamp() + 1))
    assert decide("service_restart", event, newer) == "all its processes are newer than the error"
    assert "no entry in platforms.yaml" in decide("service_restart", event, Fleet())
    assert "no health_url" in decide("service_restart", event, fleet(replica(50), probed=False))
    assert decide("service_restart", event, fleet(replica(50), probed=False), health_check=False).command == "platform"


def test_a_health_check_counts_only_if_it_failed_before() -> None:
    passed, failed = (Evidence(kind="health", outcome=one) for one in ("passed", "failed"))
    assert judge(passed) is Verdict.UNKNOWN
    assert judge(passed, passed) is Verdict.UNKNOWN
    assert judge(passed, failed) is Verdict.RECOVERED
    assert judge(failed, failed) is Verdict.NOT_RECOVERED
