"""The project that ships with Upright: flows, runbooks, models and prefect.yaml."""

from __future__ import annotations

import shutil
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from upright.errors import ConfigurationError

CONTENTS = ("flows", "runbooks", "models", "prefect.yaml", "platforms.yaml")
_SKIPPED = {"__pycache__", "results"}
_TRAINED = "score-"
"""Trained models are their project's own."""


def make(directory: Path) -> None:
    """Copy it to `directory`. Raises ConfigurationError if something of it is there, or it can't be written."""
    source = shipped()
    taken = [name for name in CONTENTS if (directory / name).exists()]
    if taken:
        raise ConfigurationError(f"{directory} has {', '.join(taken)} already. Choose another directory.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in CONTENTS:
            _copy(source / name, directory / name)
    except OSError as error:
        raise ConfigurationError(f"Can't write to {directory}: {error.strerror}.") from error


def shipped() -> Traversable:
    """In the wheel, or in the checkout that this is installed from."""
    packaged = resources.files("upright") / "defaults"
    if packaged.is_dir():
        return packaged
    checkout = Path(__file__).resolve().parents[3]
    if all((checkout / name).exists() for name in CONTENTS):
        return checkout
    raise ConfigurationError("This installation has no default project; install Upright again.")


def _copy(source: Traversable, target: Path) -> None:
    if source.is_dir():
        target.mkdir()
        for child in source.iterdir():
            if child.name not in _SKIPPED and not child.name.startswith(_TRAINED):
                _copy(child, target / child.name)
        return
    with source.open("rb") as original, target.open("wb") as copy:
        shutil.copyfileobj(original, copy)
