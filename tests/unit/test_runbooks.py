"""The shipped runbooks are the guide's, and mistakes in runbooks are told with file, line and what is allowed."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from upright.adapters import runbook_files, runbook_schema
from upright.errors import ConfigurationError, RunbookError
from upright.services.ports import Instance
from upright.services.scoring import rank
from upright.services.strategies import STRATEGIES, Fleet
from upright.testing.events import error_event

PROJECT = Path(__file__).parents[2]

# The guide's mapping from error type to strategies.
GUIDE = {
    "DatabaseError": ("database-error", "pool_increase timeout_increase cache_clear"),
    "TimeoutError": ("timeout-error", "timeout_increase resource_scale cache_clear"),
    "MemoryError": ("memory-error", "resource_scale cache_clear queue_priority"),
    "ConnectionError": ("connection-error", "retry circuit_break fallback"),
    "ValidationError": ("validation-error", "fallback request_throttle"),
    "AuthenticationError": ("authentication-error", "retry request_throttle"),
    "APIError": ("api-error", "retry timeout_increase fallback"),
    "ServiceUnavailableError": ("service-unavailable-error", "retry circuit_break service_restart"),
}

# The guide's parameters of each strategy.
PARAMETERS = {
    "retry": {"max_retries": 3, "retry_delay_ms": 1000, "exponential_backoff": True},
    "timeout_increase": {"current_timeout_ms": 5000, "new_timeout_ms": 15000, "increment_percent": 200},
    "cache_clear": {"cache_type": "redis", "clear_pattern": "*", "graceful": True},
    "pool_increase": {
        "resource": "db_connection_pool",
        "current_size": 10,
        "new_size": 25,
        "increment_percent": 150,
    },
    "resource_scale": {"resource_type": "cpu", "scale_factor": 1.5, "auto_scale": True},
    "circuit_break": {"failure_threshold": 5, "timeout_seconds": 60, "half_open_requests": 1},
    "fallback": {"fallback_service": "laravel", "fallback_mode": "degraded"},
    "queue_priority": {"current_priority": "normal", "new_priority": "high", "boost_factor": 2},
    "request_throttle": {"requests_per_minute": 100, "burst_size": 10},
    "service_restart": {"graceful": True, "timeout_seconds": 30, "health_check": True},
}


@pytest.mark.parametrize("error_type", GUIDE)
def test_each_error_type_of_the_guide_has_its_strategies_in_the_guides_order(error_type: str) -> None:
    name, strategies = GUIDE[error_type]
    runbook = runbook_files.load(PROJECT).runbook(name)
    assert runbook.matches[0] == error_type
    assert [step.strategy for step in runbook.steps] == strategies.split()


@pytest.mark.parametrize("strategy", PARAMETERS)
def test_the_guides_parameters_are_the_defaults(strategy: str) -> None:
    defaults = STRATEGIES[strategy].parameters().model_dump()
    assert defaults == {**defaults, **PARAMETERS[strategy]}
    for runbook in runbook_files.load(PROJECT):
        for step in runbook.steps:
            if step.strategy == strategy:
                # Corruption is repaired wherever it is.
                own = {"cache_type": "any"} if (runbook.name, strategy) == ("cache-corruption", "cache_clear") else {}
                assert step.parameters == {**PARAMETERS[strategy], **own}


def test_the_priors_file_holds_the_built_in_rates() -> None:
    entries = json.loads((PROJECT / "models" / "priors.json").read_text())["strategies"]
    assert {name: (one["success_rate"], one["cost_s"]) for name, one in entries.items()} == {
        name: (strategy.success_rate, strategy.cost_s) for name, strategy in STRATEGIES.items()
    }


def test_prefect_yaml_deploys_every_runbook() -> None:
    deployments = YAML(typ="safe").load(PROJECT / "prefect.yaml")["deployments"]
    assert {one["name"]: one["entrypoint"] for one in deployments} == {
        **{one.name: f"flows/runbook.py:{one.name.replace('-', '_')}" for one in runbook_files.load(PROJECT)},
        "train-models": "flows/train.py:train_models",
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "runbooks").mkdir()
    shutil.copy(PROJECT / "runbooks" / "severity.yaml", tmp_path / "runbooks")
    return tmp_path


def problems(project: Path, text: str, name: str = "mine.yaml") -> list[str]:
    (project / "runbooks" / name).write_text(text)
    with pytest.raises(RunbookError) as caught:
        runbook_files.load(project)
    return [one.removeprefix(f"{project}/runbooks/") for one in caught.value.problems]


MISTAKES = {
    "unknown key": (
        "name: mine\nmatchs: [Foo]\nsteps:\n  - strategy: retry\n",
        ["mine.yaml:2: unknown key 'matchs'; did you mean 'matches'? allowed: name, description, matches, order, "],
    ),
    "unknown strategy": (
        "name: mine\nsteps:\n  - strategy: pool_incraese\n",
        ["mine.yaml:3: unknown strategy 'pool_incraese'; did you mean 'pool_increase'? allowed: retry, "],
    ),
    "unknown parameter": (
        "name: mine\nsteps:\n  - strategy: retry\n    parameters:\n      max_retry: 2\n",
        ["mine.yaml:5: unknown key 'max_retry'; did you mean 'max_retries'? allowed: max_retries, "],
    ),
    "unknown key of a step": (
        "name: mine\nsteps:\n  - strategy: retry\n    timeout: 2\n",
        ["mine.yaml:4: unknown key 'timeout'; did you mean 'timeout_s'? allowed: strategy, parameters, "],
    ),
    "unknown key of the alert": (
        "name: mine\nsteps: [{strategy: retry}]\nalert:\n  onn: [recovered]\n",
        ["mine.yaml:4: unknown key 'onn'; did you mean 'on'? allowed: on, escalate_on, escalate_from"],
    ),
    "out of range": (
        "name: mine\nsteps:\n  - strategy: retry\n    parameters: {max_retries: 99}\n",
        ["mine.yaml:4: steps.0.parameters.max_retries: Input should be less than or equal to 10 (given: 99)"],
    ),
    "of another type": (
        "name: mine\nsteps:\n  - strategy: retry\n    timeout_s: soon\n",
        ["mine.yaml:4: steps.0.timeout_s: Input should be a valid number"],
    ),
    "not among the choices": (
        "name: mine\norder: random\nsteps:\n  - strategy: retry\n",
        ["mine.yaml:2: order: Input should be 'scored' or 'fixed' (given: 'random')"],
    ),
    "not among the statuses": (
        "name: mine\nalert: {on: [cancelled]}\nsteps:\n  - strategy: retry\n",
        ["mine.yaml:2: alert.on.0: Input should be 'recovered', 'not_recovered' or 'unknown' (given: 'cancelled')"],
    ),
    "missing": ("description: none\nsteps:\n  - strategy: retry\n", ["mine.yaml:1: 'name' is missing"]),
    "key twice": (
        "name: mine\nsteps:\n  - strategy: retry\nname: other\n",
        ["mine.yaml:4: 'name' stands twice, first in line 1"],
    ),
    "strategy twice": (
        "name: mine\nsteps:\n  - strategy: retry\n  - strategy: retry\n",
        ["mine.yaml:1: each strategy stands once in a runbook; repeated: retry"],
    ),
    "name of a fallback": (
        "name: low-fallback\nsteps:\n  - strategy: retry\n",
        ["severity.yaml:", "the name 'low-fallback' is taken by "],
    ),
    "not YAML": ("name: [mine\n", ["mine.yaml:2: not valid YAML: "]),
    "empty": ("", ["mine.yaml:1: the file is empty"]),
    "unknown tag": ("name: !word mine\nsteps: [{strategy: retry}]\n", ["mine.yaml:1: 'mine' is no !word; "]),
    "not a date": (
        "name: mine\ndescription: 2026-13-45\nsteps: [{strategy: retry}]\n",
        ["mine.yaml:2: '2026-13-45' is no timestamp; a text of that form stands in quotes"],
    ),
    "alias inside itself": (
        "name: mine\nsteps: &steps\n  - strategy: retry\n    parameters: {again: *steps}\n",
        ["mine.yaml:4: an alias must not stand inside what it stands for"],
    ),
    "key that is a list": (
        "name: mine\nsteps: [{strategy: retry}]\n? [a, b]\n: c\n",
        ["mine.yaml:3: a key must be a plain word"],
    ),
    "a list": ("- name: mine\n", ["mine.yaml:1: Input should be "]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_file_line_and_what_is_allowed(project: Path, mistake: str) -> None:
    text, expected = MISTAKES[mistake]
    told = "\n".join(problems(project, text))
    for part in expected:
        assert part in told


def test_all_mistakes_of_all_files_are_told_at_once(project: Path) -> None:
    (project / "runbooks" / "first.yaml").write_text("name: one\nsteps:\n  - strategy: reetry\n    retries: -1\n")
    told = problems(project, "name: Two\nstepps: []\n", "second.yaml")
    assert [one.partition(": ")[0] for one in told] == [
        "first.yaml:4",
        "first.yaml:3",
        "second.yaml:1",
        "second.yaml:1",
        "second.yaml:2",
    ]


def test_a_class_belongs_to_one_runbook(project: Path) -> None:
    (project / "runbooks" / "a.yaml").write_text("name: aa\nmatches: [Foo]\nsteps:\n  - strategy: retry\n")
    told = problems(project, "name: bb\nmatches:\n  - Bar\n  - Foo\nsteps:\n  - strategy: retry\n", "b.yaml")
    assert told == [f"b.yaml:4: 'Foo' already belongs to runbook aa ({project}/runbooks/a.yaml:2)"]


def test_a_name_belongs_to_one_runbook(project: Path) -> None:
    (project / "runbooks" / "a.yaml").write_text("name: mine\nsteps:\n  - strategy: retry\n")
    told = problems(project, "steps:\n  - strategy: retry\nname: mine\n", "b.yaml")
    assert told == [f"b.yaml:3: the name 'mine' is taken by {project}/runbooks/a.yaml:1"]


def test_a_class_has_one_severity(project: Path) -> None:
    path = project / "runbooks" / "severity.yaml"
    path.write_text(path.read_text().replace("    - ValueError\n", "    - ValueError\n    - OSError\n"))
    with pytest.raises(RunbookError, match=r"'OSError' already belongs to severity high"):
        runbook_files.load(project)


def test_the_severity_tables_are_required(tmp_path: Path) -> None:
    (tmp_path / "runbooks").mkdir()
    with pytest.raises(RunbookError, match=r"severity\.yaml:1: missing"):
        runbook_files.load(tmp_path)


def test_a_directory_without_runbooks_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RunbookError, match="upright init"):
        runbook_files.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"strategies": {"retyr": {"success_rate": 0.5, "cost_s": 1}}}', "did you mean 'retry'"),
        ('{"strategies": {"retry": {"success_rate": 1.5, "cost_s": 1}}}', "at most 1"),
        ('{"strategies": {"retry": {"success_rate": 0.5, "cost_s": 0}}}', "cost_s above 0"),
        ('{"strategies": []}', "not of the form"),
        ("{", "not of the form"),
    ],
)
def test_wrong_priors_are_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "priors.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=told):
        runbook_files.priors(path)


@pytest.mark.parametrize("name", runbook_schema.SCHEMAS)
def test_the_editors_schema_is_current(name: str) -> None:
    assert (PROJECT / "runbooks" / "schema" / name).read_text() == runbook_schema.text(name)


def test_the_shipped_files_fit_the_editors_schema() -> None:
    for path in (PROJECT / "runbooks").glob("*.yaml"):
        own = f"{path.stem}.json"
        name = own if own in runbook_schema.SCHEMAS else "runbook.json"
        jsonschema.validate(YAML(typ="safe").load(path), runbook_schema.schema(name))


def test_the_editors_schema_knows_each_strategys_parameters() -> None:
    wrong = {"name": "mine", "steps": [{"strategy": "retry", "parameters": {"clear_pattern": "*"}}]}
    with pytest.raises(jsonschema.ValidationError, match="clear_pattern"):
        jsonschema.validate(wrong, runbook_schema.schema("runbook.json"))


OWN = "name: mine\nsteps:\n  - strategy: custom_strategy\n    parameters: {level: 3}\n"
DECLARED = "custom_strategies:\n  - name: custom_strategy\n    success_rate: 0.9\n    cost_s: 2\n"


def test_a_declared_strategy_may_be_named_and_is_scored(project: Path) -> None:
    (project / "runbooks" / "custom_strategies.yaml").write_text(DECLARED)
    (project / "runbooks" / "mine.yaml").write_text(OWN)
    book = runbook_files.load(project)
    assert (book.priors["custom_strategy"].success_rate, book.priors["custom_strategy"].cost_s) == (0.9, 2)
    capabilities = {"strategies": {"custom_strategy": {"custom": True}}}
    process = Instance("host:1:boot", "django", 0, {}, capabilities, {}, datetime.now(UTC))
    ranking = rank(book.runbook("mine"), error_event(), Fleet([process]), book.priors, strategies=book.strategies)
    assert [choice.score for choice in ranking.tried] == [0.45]


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        (None, "mine.yaml:3: unknown strategy 'custom_strategy'; allowed: retry, "),
        (DECLARED.replace("custom_s", "custum_s", 2).replace("custum_strategies", "custom_strategies"),
         "mine.yaml:3: unknown strategy 'custom_strategy'; did you mean 'custum_strategy'?"),
        (DECLARED + "  - name: retry\n", "custom_strategies.yaml:5: 'retry' is a strategy that ships"),
        (DECLARED + "  - name: custom_strategy\n", "custom_strategies.yaml:5: 'custom_strategy' is declared twice"),
        (DECLARED + "    nmae: 1\n", "custom_strategies.yaml:5: unknown key 'nmae'; did you mean 'name'?"),
    ],
)  # fmt: skip
def test_mistakes_in_the_declarations_are_told(project: Path, declared: str | None, found: str) -> None:
    if declared is not None:
        (project / "runbooks" / "custom_strategies.yaml").write_text(declared)
    assert any(one.startswith(found) for one in problems(project, OWN))


def test_a_typo_in_a_shipped_name_is_still_a_mistake(project: Path) -> None:
    (project / "runbooks" / "custom_strategies.yaml").write_text(DECLARED)
    (told,) = problems(project, "name: mine\nsteps:\n  - strategy: retri\n")
    assert told.startswith("mine.yaml:3: unknown strategy 'retri'; did you mean 'retry'?")
    assert told.endswith("custom_strategy")
