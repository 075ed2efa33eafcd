"""The faults of catalogue.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Fault:
    name: str
    type: str
    """Of the guide's types, the one whose runbook answers it; else the class's own name."""
    made: str
    strategy: str | None = None

    @property
    def repairable(self) -> bool:
        return self.strategy is not None

    @property
    def verdict(self) -> tuple[str, ...]:
        """What the service may say: of what can't be repaired, that it was not, or that it does not know."""
        return ("recovered",) if self.repairable else ("not_recovered", "unknown")


def catalogue() -> list[Fault]:
    return [Fault(**entry) for entry in yaml.safe_load(Path(__file__).with_name("catalogue.yaml").read_text())]
