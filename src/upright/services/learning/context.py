"""Context: what scoring sees of an error. It is stored with each recovery, since learning must see the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from upright.domain.event import Event
from upright.domain.message import Json
from upright.domain.severity import Severity
from upright.services.strategies.base import as_mapping, as_number

OUTAGE_RECOVERIES = 5
"""So many recoveries of one service at a time count as an outage."""
OUTAGE_TYPES = frozenset({"ServiceUnavailableError", "ServiceUnavailable"})


@dataclass(frozen=True)
class Context:
    error_type: str
    service: str
    severity: str = Severity.LOW.value
    pool: str = "none"
    """none, free, busy (from 70 %) or full."""
    pool_percent: int | None = None
    situation: str = "none"
    """What the process knew of the cause: cancelled (a query, for its timeout), cache (a key that can't be read), pool
    (a full one that requests wait for), or none."""
    waits: bool = True
    """Whether the caller waited."""
    outage: bool = False

    def as_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Context:
        """Unknown keys, of a later version, are left out. Raises TypeError for a mapping that is none of ours."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})  # pyright: ignore[reportArgumentType]


def context_of(event: Event, severity: Severity, *, in_flight: int = 0) -> Context:
    """`in_flight`: unfinished recoveries of the same service."""
    use, waiting = _pool_use(event)
    measured = event.measurements
    if measured.get("query_cancelled"):
        situation = "cancelled"
    elif as_mapping(measured.get("cache")).get("key"):
        situation = "cache"
    elif use is not None and use >= 1 and waiting:
        situation = "pool"
    else:
        situation = "none"
    return Context(
        error_type=event.error.type,
        service=event.service,
        severity=severity.value,
        pool="none" if use is None else "full" if use >= 1 else "busy" if use >= 0.7 else "free",
        pool_percent=None if use is None else round(use * 100),
        situation=situation,
        waits=event.waiter is not None,
        outage=in_flight >= OUTAGE_RECOVERIES or event.error.type in OUTAGE_TYPES,
    )


def _pool_use(event: Event) -> tuple[float | None, bool]:
    """The fullest pool, and whether anyone waits for one of its connections."""
    fullest: tuple[float | None, bool] = (None, False)
    for value in as_mapping(event.measurements.get("pools")).values():
        pool = as_mapping(value)
        maximum = as_number(pool.get("max"))
        if not maximum:
            continue
        used = (as_number(pool.get("size")) or 0) - (as_number(pool.get("available")) or 0)
        use = min(1.0, max(0.0, used / maximum))
        if fullest[0] is None or use > fullest[0]:
            fullest = use, bool(as_number(pool.get("requests_waiting")))
    return fullest
