"""Severity, priority and HTTP status of an error, by its classes.

A copy of the service's `runbooks/severity.yaml`, for the answer that is given before the service has spoken; one golden
file tests both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["critical", "high", "medium", "low"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

HTTP_STATUS: dict[Severity, int] = {"critical": 500, "high": 503, "medium": 400, "low": 400}

_TYPES: dict[Severity, tuple[str, ...]] = {
    "critical": (
        "DatabaseError",
        "OutOfMemoryError",
        "SystemError",
        "AssertionError",
        # Names that these have in Python and its libraries.
        "MemoryError",
        "django.db.utils.Error",
        "psycopg.Error",
        "sqlalchemy.exc.SQLAlchemyError",
    ),
    "high": (
        "TimeoutError",
        "ConnectionError",
        "IOError",
        "OSError",
        # Libraries' own classes for the same, where they are none of the above by inheritance.
        "httpx.TimeoutException",
        "httpx.NetworkError",
        "httpx.ProxyError",
        "httpx.RemoteProtocolError",
        "urllib3.exceptions.MaxRetryError",
        "urllib3.exceptions.ProtocolError",
        "urllib3.exceptions.ReadTimeoutError",
        "botocore.exceptions.HTTPClientError",
        "kombu.exceptions.OperationalError",
        "billiard.exceptions.SoftTimeLimitExceeded",
        "billiard.exceptions.TimeLimitExceeded",
        "ServiceUnavailableError",
        "ServiceUnavailable",
    ),
    "medium": ("ValueError", "KeyError", "AttributeError", "TypeError"),
}
_SEVERITY_OF: dict[str, Severity] = {name: severity for severity, names in _TYPES.items() for name in names}
_LONGEST_NAME = 300
_NEVER_NAMED = (Exception, BaseException, object)


@dataclass(frozen=True)
class Classification:
    severity: Severity
    """In this environment."""
    http_status: int
    """By the error's type alone, whatever the environment."""

    @property
    def priority(self) -> str:
        """The guide's recovery priority."""
        return self.severity.upper()


def classify(classes: Sequence[Sequence[str]], environment: str = "production") -> Classification:
    """`classes` as in the event: nearest first, the outermost exception before its causes."""
    found: Severity = "low"
    for name in _names(classes):
        if name in _SEVERITY_OF:
            found = _SEVERITY_OF[name]
            break
    return Classification(found if environment == "production" else lowered(found), HTTP_STATUS[found])


def classify_type(error_type: str, environment: str = "production") -> Classification:
    """For an error of which only the name of its type is known."""
    return classify([[error_type]], environment)


def lowered(severity: Severity) -> Severity:
    """One step less urgent; low stays low."""
    return SEVERITIES[min(SEVERITIES.index(severity) + 1, len(SEVERITIES) - 1)]


def chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, then its causes in turn: what it was raised from, else what was being handled, unless hidden."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ if at.__cause__ is not None or at.__suppress_context__ else at.__context__


def classes_of(error: BaseException, *, most: int = 10) -> list[list[str]]:
    """Qualified class names of the exception and at most `most` - 1 causes, as `classify` takes them."""
    chains: list[list[str]] = []
    for link in chain(error):
        names = [
            f"{cls.__module__}.{cls.__qualname__}"[:_LONGEST_NAME]
            for cls in type(link).__mro__
            if cls not in _NEVER_NAMED
        ]
        if names:
            chains.append(names[:20])
        if len(chains) == most:
            break
    return chains


def _names(classes: Sequence[Sequence[str]]) -> Iterator[str]:
    for link in classes:
        for qualified in link:
            yield qualified
            plain = qualified.rpartition(".")[2]
            if plain != qualified:
                yield plain
