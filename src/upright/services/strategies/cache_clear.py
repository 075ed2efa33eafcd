"""cache_clear: one family of keys, the failing key's, out of the cache."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from upright.domain.event import Event
from upright.services.strategies.base import Fleet, Parameters, Plan, Strategy, as_mapping

LISTING = ("redis", "database", "memory")
"""Kinds of caches that can list their keys; of others only the failing key can be cleared."""


class CacheClearParameters(Parameters):
    cache_type: Literal["redis", "database", "memory", "file", "any"] = "redis"
    """Of which kind the cache must be, where its kind is known."""
    cache_alias: Annotated[str, Field(min_length=0, max_length=100)] = ""
    """The cache that holds stale entries, where the error itself names none."""
    clear_pattern: Annotated[str, Field(min_length=1, max_length=500)] = "*"
    """What may be cleared at most: a glob over the application's own keys."""
    graceful: bool = True


class CacheClear(Strategy):
    name = "cache_clear"
    success_rate = 0.80
    cost_s = 3
    parameters = CacheClearParameters

    def precondition(self, event: Event, fleet: Fleet, parameters: CacheClearParameters) -> str | None:
        key, kind = _failing_key(event), _kind(event)
        if kind and parameters.cache_type not in ("any", kind):
            return f"the cache is of the kind {kind}, and the runbook clears {parameters.cache_type} only"
        if key is None:
            if parameters.clear_pattern.strip("*") == "":
                return "no cache key is known to have failed, and clearing everything on a guess makes things worse"
            return None
        if not fnmatchcase(key, parameters.clear_pattern):
            return f"the key that failed is {key!r}, and the runbook allows {parameters.clear_pattern!r} only"
        return None

    def plan(self, event: Event, fleet: Fleet, parameters: CacheClearParameters) -> Plan:
        key = _failing_key(event)
        pattern = parameters.clear_pattern if key is None else narrowest(key, parameters.clear_pattern)
        cache = as_mapping(event.measurements.get("cache"))
        alias = str(cache.get("alias") or parameters.cache_alias or "default")
        # What is in a process's own memory, each process must clear.
        in_memory = (_kind(event) or parameters.cache_type) == "memory"
        values: dict[str, object] = {"pattern": pattern, "graceful": parameters.graceful}
        if key is not None and _kind(event) not in ("", *LISTING):
            values["key"] = key
        return Plan(
            command="apply",
            target=alias,
            values=values,
            before={} if key is None else {"failing_key": key},
            scope="process" if in_memory else "once",
            shared=False,
            why=f"keys {pattern!r} of cache {alias!r}",
        )


def _kind(event: Event) -> str:
    return str(as_mapping(event.measurements.get("cache")).get("kind") or "")


def _failing_key(event: Event) -> str | None:
    key = as_mapping(event.measurements.get("cache")).get("key")
    return key if isinstance(key, str) and key else None


def family(key: str) -> str:
    """Glob of a key's siblings: its last segment after `:` or `/` free, all else literal. A key without separator has
    no siblings."""
    cut = max(key.rfind(":"), key.rfind("/")) + 1
    return escaped(key[:cut]) + "*" if cut else escaped(key)


def escaped(literal: str) -> str:
    """A glob, as Redis reads it, that matches this text only."""
    return re.sub(r"[*?\[]", lambda found: f"[{found[0]}]", literal.replace("\\", "\\\\"))


def narrowest(key: str, allowed: str) -> str:
    """The key's family if all of it is allowed, else what is allowed."""
    siblings = family(key)
    prefix, star, rest = allowed.partition("*")
    literal = not set("?[\\") & set(prefix)
    if star and not rest and literal and siblings.startswith(escaped(prefix)):
        return siblings
    return siblings if siblings == allowed else allowed
