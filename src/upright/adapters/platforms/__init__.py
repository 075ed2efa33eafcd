"""Platforms: gunicorn and supervisor, read from `platforms.yaml`."""

from __future__ import annotations

from upright.adapters.platforms.files import FILE, load

__all__ = ["FILE", "load"]
