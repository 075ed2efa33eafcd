"""HTTP clients that the application registers, so that their read timeouts can be raised for a while.

    session = requests.Session()
    http_clients.register("carrier", session, hosts=["carrier.example"])

Only the registered object is touched, and only its requests to those hosts. None of the libraries is imported here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from asgiref.sync import iscoroutinefunction

logger = logging.getLogger("error_logging")

PREFIX = "http:"
_MARK = "_upright_http_client"


@dataclass
class HTTPClient:
    name: str
    hosts: tuple[str, ...]
    default_ms: Callable[[], int | None]
    """The read timeout of a request that says nothing of it."""
    asked_ms: int | None = None
    """The read timeout that the application gave its last request."""

    def serves(self, url: Any) -> bool:
        parts = urlsplit(str(url))
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        return host in self.hosts or f"{host}:{port}" in self.hosts

    @property
    def timeout_ms(self) -> int | None:
        """As the application has it; None where it waits for ever."""
        return self.asked_ms if self.asked_ms is not None else self.default_ms()

    @property
    def in_force_ms(self) -> int | None:
        own, more = self.timeout_ms, raised.get(self.name)
        return own if own is None or more is None else max(own, more)

    def seconds(self, own: float | None, url: Any) -> float | None:
        """The read timeout of a request to be made, which the application gave `own`."""
        if own is None or not self.serves(url):
            return own
        more = raised.get(self.name)
        # A request that is redirected comes here again, with what it was given the first time.
        if more is None or round(own * 1000) != more:
            self.asked_ms = round(own * 1000)
        return own if more is None else max(own, more / 1000)


registered: dict[str, HTTPClient] = {}
raised: dict[str, int] = {}
"""Read timeout in ms, by name, while a directive is in force."""


def register(name: str, client: Any, *, hosts: Sequence[str]) -> None:
    """Have Upright know a client. Call it once for each client, where it is made.

    Args:
        name: the directive's target is `http:<name>`
        client: a requests.Session, httpx.Client, httpx.AsyncClient or urllib3.PoolManager
        hosts: whom it talks to, as `host` or `host:port`
    """
    if isinstance(hosts, str) or not hosts:
        raise ValueError("hosts must be a list of `host` or `host:port`")
    kinds = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(client).__mro__}
    wrap = next((wrap for kind, wrap in _WRAPPERS.items() if kind in kinds), None)
    if wrap is None:
        raise TypeError(f"client must be a {', '.join(_WRAPPERS)}, not {type(client).__name__}")
    known: HTTPClient | None = getattr(client, _MARK, None)
    if known is None:
        known = HTTPClient(name, tuple(hosts), lambda: None)
        wrap(client, known)
        setattr(client, _MARK, known)
    else:
        registered.pop(known.name, None)
        known.name, known.hosts = name, tuple(hosts)
    registered[name] = known


def readings() -> dict[str, dict[str, Any]]:
    """No I/O."""
    return {name: {"hosts": list(one.hosts), "timeout_ms": one.timeout_ms} for name, one in tuple(registered.items())}


def client_of(exc: BaseException) -> str | None:
    """Name of the registered client that an exception came from: others may talk to the same peer."""
    return exc.__dict__.get(_MARK)


@contextlib.contextmanager
def _named(known: HTTPClient) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        with contextlib.suppress(Exception):
            error.__dict__.setdefault(_MARK, known.name)
        raise


def _guarded(seconds: Callable[[], float | None], own: float | None) -> float | None:
    try:
        return seconds()
    except Exception:
        logger.exception("Upright could not look at a request; it is made as it would be without")
        return own


def _requests(client: Any, known: HTTPClient) -> None:
    send = client.send

    def timed(request: Any, **options: Any) -> Any:
        given = options.get("timeout")
        connect, own = given if isinstance(given, tuple) else (given, given)
        if isinstance(own, int | float):
            options["timeout"] = (connect, _guarded(lambda: known.seconds(own, request.url), own))
        with _named(known):
            return send(request, **options)

    client.send = timed


def _httpx(client: Any, known: HTTPClient) -> None:
    send = client.send

    def prepare(request: Any) -> None:
        given = request.extensions.get("timeout") or {}
        own = given.get("read")
        if isinstance(own, int | float):
            read = _guarded(lambda: known.seconds(own, request.url), own)
            request.extensions = {**request.extensions, "timeout": {**given, "read": read}}

    def timed(request: Any, **options: Any) -> Any:
        prepare(request)
        with _named(known):
            return send(request, **options)

    async def atimed(request: Any, **options: Any) -> Any:
        prepare(request)
        with _named(known):
            return await send(request, **options)

    client.send = atimed if iscoroutinefunction(send) else timed
    known.default_ms = lambda: _ms(client.timeout.read)


def _urllib3(client: Any, known: HTTPClient) -> None:
    urlopen = client.urlopen

    def timed(method: str, url: str, redirect: bool = True, **options: Any) -> Any:
        given: Any = options["timeout"] if "timeout" in options else client.connection_pool_kw.get("timeout")
        own = _read_timeout(given)
        if own is not None:
            options["timeout"] = _guarded_timeout(given, own, known, url)
        with _named(known):
            return urlopen(method, url, redirect=redirect, **options)

    client.urlopen = timed
    known.default_ms = lambda: _ms(_read_timeout(client.connection_pool_kw.get("timeout")))


def _guarded_timeout(given: Any, own: float, known: HTTPClient, url: str) -> Any:
    read = _guarded(lambda: known.seconds(own, url), own)
    if read is None or read <= own:
        return given
    if isinstance(given, int | float):
        return type(_as_timeout(given))(connect=given, read=read)
    total = given.total if not isinstance(given.total, int | float) else max(given.total, read)
    return type(given)(total=total, connect=given.connect_timeout, read=read)


def _as_timeout(seconds: float) -> Any:
    from urllib3.util import Timeout

    return Timeout(seconds)


def _read_timeout(given: Any) -> float | None:
    """Of a number or a urllib3 Timeout, in seconds."""
    parts = (
        (given,) if isinstance(given, int | float) else (getattr(given, "total", None), getattr(given, "_read", None))
    )
    numbers = [float(part) for part in parts if isinstance(part, int | float) and not isinstance(part, bool)]
    return min(numbers, default=None)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


_WRAPPERS: dict[str, Callable[[Any, HTTPClient], None]] = {
    "requests.Session": _requests,
    "httpx.Client": _httpx,
    "httpx.AsyncClient": _httpx,
    "urllib3.PoolManager": _urllib3,
}
