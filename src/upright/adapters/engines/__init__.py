"""Engines from wheels, as children of this process: a real PostgreSQL, a real redis-server, a real Prefect server.

Each starts in its own directory, is awaited by asking it, and ends with the process that started it, also if that
one is killed.
"""

from upright.adapters.engines.child import Child
from upright.adapters.engines.ports import free_port, listening, require_free
from upright.adapters.engines.postgres import EmbeddedPostgres
from upright.adapters.engines.prefect import EmbeddedPrefect
from upright.adapters.engines.redis import EmbeddedRedis

__all__ = [
    "Child",
    "EmbeddedPostgres",
    "EmbeddedPrefect",
    "EmbeddedRedis",
    "free_port",
    "listening",
    "require_free",
]
