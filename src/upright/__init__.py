"""Upright: runbooks that put a Django application back on its feet."""

__version__ = "0.1.0"
SCHEMA_VERSION = 1
"""Version of every message that Upright exchanges. Additive changes only; see docs/protocol.md."""
