"""JSON Schemas of the runbook files, for editors: `runbooks/schema/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from upright.domain.guardrails import Guardrails
from upright.domain.platform import Platforms
from upright.domain.runbook import Runbook, SeverityTable
from upright.services.strategies import STRATEGIES

SCHEMAS: dict[str, type[BaseModel]] = {
    "runbook.json": Runbook,
    "severity.json": SeverityTable,
    "platforms.json": Platforms,
    "guardrails.json": Guardrails,
}

_DRAFT = "http://json-schema.org/draft-07/schema#"


def schema(name: str) -> dict[str, Any]:
    """With the strategies' names, and each one's own parameters."""
    found: dict[str, Any] = SCHEMAS[name].model_json_schema()
    step = found["$defs"].get("Step")
    if step is None:
        return {"$schema": _DRAFT, **found}
    step["properties"]["strategy"] = {"enum": list(STRATEGIES)}
    step["allOf"] = [
        {
            "if": {"properties": {"strategy": {"const": strategy.name}}},
            "then": {"properties": {"parameters": strategy.parameters.model_json_schema()}},
        }
        for strategy in STRATEGIES.values()
    ]
    return {"$schema": _DRAFT, **found}


def text(name: str) -> str:
    return json.dumps(schema(name), indent=2) + "\n"


def write(directory: Path) -> None:
    """Into a project's `runbooks/schema/`."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in SCHEMAS:
        (directory / name).write_text(text(name), "utf-8")
