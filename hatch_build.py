"""Puts the default project into the wheel, from where it lives in the repository.

Not into an editable install: that would be a copy, and edits would go unseen.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CONTENTS = ("flows", "runbooks", "models", "prefect.yaml", "platforms.yaml")


class DefaultProject(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        for name in CONTENTS:
            for path in self._files(Path(self.root, name)):
                inside = path.relative_to(self.root).as_posix()
                build_data["force_include"][str(path)] = f"upright/defaults/{inside}"

    def _files(self, path: Path) -> Iterator[Path]:
        """Without results of simulations, and models that were trained here."""
        if path.is_file():
            yield path
        elif path.name not in ("results", "__pycache__"):
            for child in sorted(path.iterdir()):
                if not child.name.startswith("score-"):
                    yield from self._files(child)
