"""Breakers around outbound calls: `guard(host, port)`, and what puts it around the calls of an HTTP client.

    from error_logging.breakers import CircuitOpen, guard

    with guard("payments.internal", 443):
        charge(order)

While a circuit_break directive names the peer, the block is not entered: CircuitOpen, a ConnectionError, is raised at
once. Without one, a guard costs a look into an empty dict.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from asgiref.sync import iscoroutinefunction

from error_logging import circuits
from error_logging.circuits import CircuitOpen, Permit

__all__ = ["CircuitOpen", "guard", "guarded_httpx_transport", "guarded_requests_adapter"]

Call = TypeVar("Call", bound=Callable[..., Any])
MOST_PEERS = 200
_peers: dict[tuple[str, int], None] = {}
"""Peers that this process has guarded, for the agent to announce."""
_entered: ContextVar[tuple[Permit | None, ...]] = ContextVar("upright_guards", default=())


class guard:  # noqa: N801 (used as contextlib's own are)
    """A context manager, synchronous or not, and a decorator of either kind of function. May be shared by threads."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host.lower(), int(port)

    def __enter__(self) -> guard:
        _entered.set((*_entered.get(), enter(self.host, self.port)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        *outer, permit = _entered.get()
        _entered.set(tuple(outer))
        leave(permit, exc, self.host, self.port)

    async def __aenter__(self) -> guard:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, traceback)

    def __call__(self, call: Call) -> Call:
        if iscoroutinefunction(call):

            @wraps(call)
            async def awrapper(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await call(*args, **kwargs)

            return awrapper  # type: ignore[return-value]

        @wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self:
                return call(*args, **kwargs)

        return wrapper  # type: ignore[return-value]


def target_of(host: str, port: int) -> str:
    return f"upstream:{host}:{port}"


def targets() -> list[str]:
    return [target_of(*peer) for peer in list(_peers)]


def enter(host: str, port: int) -> Permit | None:
    """Begin a call; None where no directive is about the peer. Raises CircuitOpen."""
    if (host, port) not in _peers and len(_peers) < MOST_PEERS:
        _peers[host, port] = None
    if not circuits.active():
        return None
    circuit = circuits.get(target_of(host, port))
    return None if circuit is None else circuit.admit()


def leave(permit: Permit | None, exc: BaseException | None, host: str, port: int) -> None:
    """End a call, as it ended."""
    if exc is None:
        if permit is not None:
            permit.passed()
        return
    failed = _is_failure(exc)
    if failed:
        with contextlib.suppress(Exception):
            exc.__dict__.setdefault("_upright_guarded", (host, port))
    if permit is None:
        return
    if failed:
        permit.failed()
    elif isinstance(exc, Exception) and not isinstance(exc, CircuitOpen):
        permit.passed()
    else:
        permit.release()


def peer_of(exc: BaseException) -> tuple[str, int] | None:
    """The guarded peer that an exception came from."""
    return exc.__dict__.get("_upright_guarded")


def _is_failure(exc: BaseException) -> bool:
    """Whether it is the peer's: an answer below 500 says that the peer works."""
    if not isinstance(exc, Exception) or isinstance(exc, CircuitOpen):
        return False
    status = getattr(getattr(exc, "response", None), "status_code", None)
    return not (isinstance(status, int) and status < 500)


def guarded_requests_adapter(**options: Any) -> Any:
    """An adapter for `requests`, with a guard around each call to each peer:

    session.mount("https://", guarded_requests_adapter())
    """
    from requests.adapters import HTTPAdapter

    class GuardedAdapter(HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            return _guarded(str(request.url), lambda: super(GuardedAdapter, self).send(request, *args, **kwargs))

    return GuardedAdapter(**options)


def guarded_httpx_transport(transport: Any = None) -> Any:
    """A transport for `httpx.Client`, around another one or httpx's own: `Client(transport=…)`."""
    import httpx

    inner: Any = transport if transport is not None else httpx.HTTPTransport()

    class GuardedTransport(httpx.BaseTransport):
        def handle_request(self, request: Any) -> Any:
            return _guarded(str(request.url), lambda: inner.handle_request(request))

        def close(self) -> None:
            inner.close()

    return GuardedTransport()


def _guarded(url: str, call: Callable[[], Any]) -> Any:
    parts = urlsplit(url)
    host, port = (parts.hostname or ""), parts.port or (443 if parts.scheme == "https" else 80)
    permit = enter(host, port)
    try:
        response = call()
    except BaseException as error:
        leave(permit, error, host, port)
        raise
    if permit is not None:
        permit.failed() if response.status_code >= 500 else permit.passed()
    return response
