"""Puts the default project into the wheel, from where it lives in the repository.

Not into an editable install: that would be a copy, and edits would go unseen.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CONTENTS = ("flows", "runbooks", "models", "prefect.yaml", "platforms.yaml")


class DefaultProject(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        for name in CONTENTS:
            build_data["force_include"][str(Path(self.root, name))] = f"upright/defaults/{name}"
