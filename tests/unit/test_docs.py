"""Nothing that a user can set, write, call or meet on the wire is undocumented, and no link in the docs is dead."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer.main
from ruamel.yaml import YAML

from error_logging import checks, conf, decorators, measurements
from upright.adapters import default_project, runbook_files
from upright.adapters.intake import refusals
from upright.cli.app import app
from upright.config import Settings
from upright.domain import answer, directive, event
from upright.domain.guardrails import FailingService, Guardrails, Limits, RepeatedFailures, TrustRules
from upright.domain.message import Message
from upright.domain.runbook import AlertRules, Runbook, SeverityClass, SeverityTable, Step, Verification
from upright.domain.verdict import Evidence, Status, Verdict
from upright.errors import RunbookError
from upright.services.strategies import STRATEGIES

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted(
    path
    for path in REPOSITORY.rglob("*.md")
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(REPOSITORY).parts)
)
PAGE_IDS = [str(path.relative_to(REPOSITORY)) for path in PAGES]
APP = "integrations/django/src/error_logging"
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def section(text: str, heading: str) -> str:
    """What stands under a heading, with its subsections."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert found, f"there is no heading {heading!r}"
    level = len(found[1])
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{level}}} ", _FENCE.sub(lambda fence: " " * len(fence[0]), rest), re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> Iterator[list[str]]:
    """Cells of every table's rows, without heads."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def row_of(text: str, name: str) -> list[str]:
    found = next((cells for cells in rows(text) if f"`{name}`" in cells[0]), None)
    assert found, f"no row for {name}"
    return found


def undocumented(names: Iterator[str] | list[str] | Mapping[str, Any], text: str) -> list[str]:
    return [name for name in names if f"`{name}`" not in text]


# Settings


@pytest.mark.parametrize("name", sorted(conf.SETTINGS))
def test_every_setting_of_django_is_documented(name: str) -> None:
    assert row_of(section(page("settings.md"), "Django"), name)


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_of_the_service_is_documented_with_its_default(name: str) -> None:
    cells = row_of(section(page("settings.md"), "Service"), f"UPRIGHT_{name.upper()}")
    default = Settings.model_fields[name].get_default(call_default_factory=True)
    told = cells[2].strip("`")
    if default is None or (default == [] and told == "–"):
        assert told in ("–", "embedded")
    elif isinstance(default, (list, dict)):
        assert told == str(default)
    else:
        assert told == (str(default).lower() if isinstance(default, bool) else str(default))


def test_every_documented_setting_exists() -> None:
    text = page("settings.md")
    django, service = section(text, "Django"), section(text, "Service")
    assert {cells[0].strip("`") for cells in rows(django) if cells[0].isupper()} <= set(conf.SETTINGS)
    told = {name for cells in rows(service) for name in re.findall(r"UPRIGHT_([A-Z_]+)", cells[0])}
    assert told == {name.upper() for name in Settings.model_fields}


def test_the_docs_name_no_setting_that_does_not_exist() -> None:
    known = (
        set(conf.SETTINGS) | {f"UPRIGHT_{name.upper()}" for name in Settings.model_fields} | _variables_of_commands()
    )
    unknown = {
        f"{path.name}: {name}"
        for path in PAGES
        for name in re.findall(r"\bUPRIGHT_[A-Z_]+[A-Z]", path.read_text("utf-8"))
        if name not in known
    }
    assert unknown == set()


def test_the_limits_that_ship_are_documented() -> None:
    block = next(code for code in _code("settings.md", "python") if "UPRIGHT_LIMITS" in code)
    assert ast.literal_eval(block.partition("=")[2].strip()) == conf.SHIPPED_LIMITS


def test_every_system_check_is_documented() -> None:
    ids = set(re.findall(r"\"(upright\.[EW]\d+)\"", inspect.getsource(checks)))
    text = section(page("settings.md"), "System checks")
    assert ids
    assert {cells[0].strip("`") for cells in rows(text)} - {"id"} == ids


def test_every_option_of_the_decorator_is_documented() -> None:
    options = [name for name in inspect.signature(decorators.ai_error_handler).parameters if name != "view"]
    assert undocumented(options, section(page("django.md"), "Views")) == []


def test_every_field_of_the_log_is_documented() -> None:
    [model] = [path for path in _sources(APP) if path.name == "models.py"]
    [log] = [node for node in ast.walk(ast.parse(model.read_text("utf-8"))) if _is_class(node, "ErrorLog")]
    fields = [
        target.id
        for node in getattr(log, "body", [])
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
    assert "error_id" in fields
    assert undocumented(fields, section(page("django.md"), "The log")) == []


def _is_class(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.ClassDef) and node.name == name


# Examples


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_every_example_can_be_read(path: Path) -> None:
    text = path.read_text("utf-8")
    for block in _code_of(text, "python"):
        ast.parse(block)
    for block in _code_of(text, "json"):
        json.loads(block)


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_what_examples_import_is_there(path: Path) -> None:
    """Read rather than imported: the app's models need a project."""
    ours = ("error_logging", "upright")
    imports = [
        (node.module, one.name)
        for block in _code_of(path.read_text("utf-8"), "python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(ours)
        for one in node.names
    ]
    assert [(module, name) for module, name in imports if not _there(module, name)] == []


def _there(module: str, name: str) -> bool:
    root = REPOSITORY / ("integrations/django/src" if module.startswith("error_logging") else "src")
    place = root / Path(*module.split("."))
    if (place / f"{name}.py").exists() or (place / name).is_dir():
        return True
    file = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
    defined = rf"^(?:class|def|async def) {name}\b|\bimport .*\b{name}\b|^{name}\b"
    return file.exists() and bool(re.search(defined, file.read_text("utf-8"), re.MULTILINE))


# Runbooks and strategies


@pytest.mark.parametrize(
    ("model", "heading"),
    [
        (Runbook, "Fields"),
        (Step, "Steps"),
        (Verification, "Verification"),
        (AlertRules, "Alerts"),
        (SeverityClass, "Severities"),
    ],
)
def test_every_field_of_a_runbook_is_documented_with_its_default(model: Any, heading: str) -> None:
    text = section(page("runbooks.md"), heading)
    for name, field in model.model_fields.items():
        cells = row_of(text, name)
        default = field.get_default(call_default_factory=True)
        if model is SeverityClass or name in ("verification", "alert", "parameters", "description", "on"):
            continue
        told = cells[2].strip("`")
        if field.is_required():
            assert told == "required", name
        elif default is None:
            assert told == "–", name
        elif isinstance(default, list):
            assert told == f"[{', '.join(str(one) for one in default)}]", name
        else:
            assert told == (str(default).lower() if isinstance(default, bool) else str(default)), name


@pytest.mark.parametrize("model", [Guardrails, Limits, RepeatedFailures, FailingService, TrustRules])
def test_every_field_of_the_guardrails_is_documented(model: Any) -> None:
    text = page("guardrails.md")
    assert [name for name in model.model_fields if f"`{name}`" not in text and f"{name}:" not in text] == []


def test_the_guardrails_in_the_docs_are_those_that_ship() -> None:
    [block] = _code("guardrails.md", "yaml")
    told, shipped = Guardrails.model_validate(YAML(typ="safe").load(block)), Guardrails()
    assert told.model_copy(update={"strategies": shipped.strategies}) == shipped
    assert told.strategies.items() <= shipped.strategies.items()


def test_every_row_of_the_severities_is_documented() -> None:
    assert undocumented(list(SeverityTable.model_fields), section(page("runbooks.md"), "Severities")) == []


def _mistakes() -> list[tuple[str, str, str]]:
    return [
        (field.strip("`"), mistake.strip("`"), message.strip("`"))
        for field, mistake, message in rows(section(page("runbooks.md"), "Mistakes"))
        if field != "field"
    ]


def test_every_field_has_a_mistake() -> None:
    named = {field for field, _, _ in _mistakes()}
    fields = {name for model in (Runbook, Step, Verification, AlertRules) for name in model.model_fields}
    assert fields - named == set()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("docs") / "project"
    default_project.make(directory)
    return directory


@pytest.mark.parametrize(("field", "mistake", "message"), _mistakes())
def test_a_mistake_is_told_as_documented(project: Path, field: str, mistake: str, message: str) -> None:
    key = mistake.partition(":")[0]
    lines = {"name": "name: demo", "steps": "steps: [{strategy: retry}]"}
    lines[key] = mistake
    path = project / "runbooks" / "demo.yaml"
    path.write_text("\n".join(lines.values()) + "\n")
    try:
        with pytest.raises(RunbookError) as told:
            runbook_files.load(project)
    finally:
        path.unlink()
    beginning = message.rstrip("…").strip()
    [problem] = told.value.problems
    where, _, said = problem.partition(": ")
    assert re.fullmatch(rf"{re.escape(str(path))}:\d+", where)
    assert said.startswith(beginning) if message.endswith("…") else said == beginning


def test_every_runbook_in_the_docs_is_valid(project: Path) -> None:
    found = [block for block in _code("runbooks.md", "yaml") if "name:" in block and not block.startswith("low:")]
    assert found
    for block in found:
        path = project / "runbooks" / "demo.yaml"
        path.write_text(block)
        try:
            runbook_files.load(project)
        finally:
            path.unlink()


def test_the_severity_in_the_docs_is_valid() -> None:
    [block] = [block for block in _code("runbooks.md", "yaml") if block.startswith("low:")]
    SeverityClass.model_validate(YAML(typ="safe").load(block)["low"])


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_and_parameter_is_documented(name: str) -> None:
    strategy = STRATEGIES[name]
    overview = page("strategies/README.md")
    cells = row_of(overview, name)
    assert f"{strategy.success_rate:.0%}".replace("%", " %") == cells[2]
    assert f"{strategy.cost_s:g}" == cells[3]
    text = page(f"strategies/{name}.md")
    for heading in ("Acts on", "When it helps", "Preconditions", "What is done", "Measured", "Expiry and revert"):
        assert f"**{heading}.**" in text
    assert "**What can go wrong.**" in text
    schema = strategy.parameters.model_json_schema()
    table = {cells[0].strip("`"): cells for cells in rows(text)}
    assert set(table) - {"parameter"} == set(strategy.parameters.model_fields)
    for parameter, field in strategy.parameters.model_fields.items():
        assert table[parameter][1].strip("`") == _as_told(field.default)
        assert table[parameter][2].strip("`") == _range_of(schema["properties"][parameter])


def _as_told(default: object) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _range_of(schema: Mapping[str, Any]) -> str:
    """As a parameter's page tells it, from its JSON Schema."""
    if "const" in schema:
        return str(schema["const"])
    if "maxLength" in schema:
        return f"{schema['minLength']}–{schema['maxLength']} characters"
    if "enum" in schema:
        return "`, `".join(schema["enum"])
    if "exclusiveMinimum" in schema:
        return f"above {schema['exclusiveMinimum']:g}, at most {schema['maximum']:g}"
    return f"{schema['minimum']:g}–{schema['maximum']}" if "maximum" in schema else ""


# Command line


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for inner_name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{name} {inner_name}")


COMMANDS = [
    (name, command)
    for name, command in _commands(typer.main.get_command(app), "upright")
    if name == "upright" or not getattr(command, "commands", None)
]


def _variables_of_commands() -> set[str]:
    return {str(option.envvar) for _, command in COMMANDS for option in command.params if option.envvar}


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_and_option_is_documented(name: str, command: Any) -> None:
    text = section(page("cli.md"), name)
    options = [flag for option in command.params for flag in (*option.opts, *option.secondary_opts) if flag[0] == "-"]
    assert undocumented(options, text) == []
    told = {flag for cells in rows(text) for flag in re.findall(r"`(--[a-z-]+)`", cells[0])}
    assert told == set(options)


def test_every_documented_command_exists() -> None:
    headings = set(re.findall(r"^## (upright.*)$", page("cli.md"), re.MULTILINE))
    assert headings == {name for name, _ in COMMANDS}


# Wire


MESSAGES = sorted(
    {
        value
        for module in (event, directive, answer)
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Message)
    }
    | {Evidence},
    key=lambda one: one.__name__,
)


@pytest.mark.parametrize("model", MESSAGES)
def test_every_field_and_word_of_a_message_is_documented(model: type[Message]) -> None:
    text = page("protocol.md")
    assert undocumented(list(model.model_fields), text) == []
    words = [word for field in model.model_fields.values() for word in _words(field.annotation)]
    assert undocumented(words, text + page("strategies/README.md")) == []


def _words(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from (str(one) for one in get_args(annotation) if isinstance(one, str))
    else:
        for inner in get_args(annotation):
            yield from _words(inner)


def test_every_verdict_and_status_is_documented() -> None:
    assert undocumented([str(one.value) for one in Verdict], page("strategies/README.md")) == []
    assert [str(one.value) for one in Status if one.value not in page("glossary.md")] == []


def test_every_header_is_documented() -> None:
    headers = {
        text
        for path in (*_sources(APP), *_sources("src/upright/adapters/intake"))
        for text in _texts(path.read_text("utf-8"))
        if re.fullmatch(r"(webhook|upright)-[a-z]+|X-[A-Z][A-Za-z-]+|Retry-After", text)
    }
    assert {"webhook-id", "webhook-timestamp", "webhook-signature", "upright-tenant"} <= headers
    threads = section(page("architecture.md"), "Threads of an application's process")
    assert undocumented(sorted(headers), page("protocol.md") + threads) == []


def test_every_refusal_is_documented() -> None:
    told = inspect.getsource(refusals.Refusal).partition('code: str\n    """')[2].partition('"""')[0]
    codes = [code.strip() for code in told.split(",")]
    assert len(codes) > 5
    assert undocumented(codes, section(page("protocol.md"), "Statuses")) == []


def test_every_path_of_the_service_is_documented() -> None:
    source = "".join(path.read_text("utf-8") for path in _sources("src/upright/adapters/intake"))
    paths = set(re.findall(r"\"(/(?:v1/[^\"]+|healthz|readyz))\"", source))
    assert len(paths) > 5
    headings = " ".join(re.findall(r"^## (.*)$", page("protocol.md"), re.MULTILINE))
    assert [path for path in paths if path not in headings] == []


def test_every_measurement_is_documented() -> None:
    keys = _measurements()
    assert {"pools", "requests_waiting", "other_connections", "retry_after_s", "alias", "port"} <= keys
    text = section(page("protocol.md"), "Measurements")
    assert undocumented(sorted(keys), text) == []


def _measurements() -> set[str]:
    """Keys of what is measured: of objects that are returned, of what is added to them, and of the readings by name."""
    keys = set(measurements._POOL_KEYS.values()) | set(measurements.CANCELLED.values())
    for node in ast.walk(ast.parse(inspect.getsource(measurements))):
        match node:
            case ast.Return(value=ast.Dict(keys=named)):
                keys |= {str(key.value) for key in named if isinstance(key, ast.Constant)}
            case ast.Subscript(value=ast.Name(id="found"), slice=ast.Constant(value=str(key)), ctx=ast.Store()):
                keys.add(key)
            case ast.Tuple(elts=[ast.Constant(value=str(key)), ast.Name()]):
                keys.add(key)
            case _:
                pass
    return keys


def _sources(directory: str) -> list[Path]:
    return sorted((REPOSITORY / directory).rglob("*.py"))


def _texts(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


# Links


@pytest.mark.parametrize("path", PAGES, ids=PAGE_IDS)
def test_no_link_or_image_is_dead(path: Path) -> None:
    dead: list[str] = []
    for link in _LINK.findall(_FENCE.sub("", path.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in _anchors(file)):
            dead.append(link)
    assert dead == []


def test_every_page_is_in_the_index() -> None:
    index = page("README.md")
    assert [path.name for path in DOCS.glob("*.md") if path.name != "README.md" and f"({path.name})" not in index] == []


def _anchors(path: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _code(name: str, language: str) -> list[str]:
    return _code_of(page(name), language)


def _code_of(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
