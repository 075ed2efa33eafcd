"""A scripted service, to test an application's error handling without a real one.

    from error_logging.testing import ScriptedService, apply, directive

    def test_the_report_is_served_again(client):
        with ScriptedService() as service, service.connected():
            service.on_error(apply(directive("pool_increase", max_size=8)))
            assert client.get("/report/").json()["recovery"]["success"]
            assert service.results[0].evidence["outcome"] == "passed"

It is a real HTTP server on this machine that speaks the service's side of docs/protocol.md: it verifies signatures,
signs its answers, knows duplicates by their `webhook-id`, and judges by evidence as the service does. It starts in
milliseconds, acts on nothing, and can misbehave in every way that a service and its network can.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NoReturn, Self, get_args
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from error_logging import signatures

__all__ = [
    "Received", "Reply", "ScriptedService", "action", "apply", "closing", "directive", "final", "garbage", "pending",
    "probe", "recovered", "redirect", "refusal", "replay", "report", "retry", "signed_for_another", "silence",
    "unsigned",
]  # fmt: skip

MAX_BODY = 64 * 1024
WAIT_S = 10.0
"""How long a test waits for a message before it fails."""

Kind = Literal["error", "result", "recovery", "sync", "alert_test"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Received:
    """One message that the application sent."""

    kind: Kind
    path: str
    wait_ms: int
    delivery_id: str
    tenant: str
    body: Json
    signature: str = ""
    timestamp: int = 0
    at: float = field(default_factory=time.monotonic)

    @property
    def error_id(self) -> str:
        if self.kind in ("result", "recovery"):
            return self.path.split("/")[3]
        return str(self.body.get("error_id", ""))

    @property
    def result(self) -> Json:
        """The only result of a waiting caller's message."""
        (only,) = self.body["results"]
        return only

    @property
    def evidence(self) -> Json | None:
        return self.result.get("evidence")


@dataclass(frozen=True)
class Reply:
    """What the service answers. `body` is completed with the ids of the message that it answers."""

    body: Json | bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    trust: Literal["signed", "unsigned", "signed_for_another"] = "signed"
    until: threading.Event | None = None
    """The answer is held until this is set, and is `pending` if the caller's `wait_ms` pass first."""
    after: Literal["answer", "silence", "close"] = "answer"

    def held(self, until: threading.Event) -> Reply:
        """The same answer, once `until` is set."""
        return replace(self, until=until)


Scripted = Reply | Callable[[Received], Reply]


def action(strategy: str, verdict: str = "recovered", *, reason: str = "", duration_ms: float = 1.0) -> Json:
    """An action of a report, as the guide has it."""
    return {
        "strategy": strategy,
        "success": verdict == "recovered",
        "verdict": verdict,
        "duration_ms": duration_ms,
        "reason": reason,
    }


def report(status: str, *actions: Json, success: bool | None = None, message: str | None = None) -> Json:
    """A RecoveryReport. `success` may differ from the status: the incident recovered, this caller's operation not."""
    titles = [str(one["strategy"]).replace("_", " ").title() for one in actions if one["success"]]
    told = {
        "pending": "Recovery pending",
        "recovered": "Recovery successful" + (f": {titles[-1]}" if titles else ""),
    }.get(status, "Recovery failed")
    return {
        "attempted": True,
        "success": status == "recovered" if success is None else success,
        "status": status,
        "message": told if message is None else message,
        "actions": list(actions),
    }


def final(recovery: Json, *, severity: str | None = None) -> Reply:
    """A final answer."""
    return Reply({"recovery": recovery, **({"severity": severity} if severity else {})})


def recovered(strategy: str = "retry") -> Reply:
    return final(report("recovered", action(strategy)))


def pending() -> Reply:
    """Accepted, no verdict yet."""
    return Reply({"recovery": report("pending")}, status=202)


def directive(strategy: str, target: str = "default", *, ttl_s: float = 60, version: int = 1, **values: object) -> Json:
    """Desired state of one target; `values` are absolute."""
    scope = "once" if strategy == "cache_clear" else "process"
    return {
        "id": str(uuid4()), "service": "django", "strategy": strategy, "target": target, "version": version,
        "values": values, "ttl_s": ttl_s, "scope": scope,
    }  # fmt: skip


def apply(*directives: Json, verify: bool = True, deadline_ms: int = 60_000) -> Reply:
    """Have the waiting caller apply directives and, with `verify`, bring evidence."""
    return _command("apply", deadline_ms, directives=list(directives), verify=verify)


def replay(*directives: Json, deadline_ms: int = 60_000) -> Reply:
    """Have the waiting caller do its operation again, as one who joined another's recovery."""
    return _command("replay", deadline_ms, directives=list(directives))


def retry(
    *, max_retries: int = 3, retry_delay_ms: int = 1, exponential_backoff: bool = True, deadline_ms: int = 60_000
) -> Reply:
    policy = {
        "max_retries": max_retries, "retry_delay_ms": retry_delay_ms, "exponential_backoff": exponential_backoff,
    }  # fmt: skip
    return _command("retry", deadline_ms, retry=policy)


def probe(*, deadline_ms: int = 60_000) -> Reply:
    return _command("probe", deadline_ms)


def refusal(status: int, message: str = "not now", *, retry_after: int | None = None) -> Reply:
    """An error of the service's: 400, 401, 410, 429, 503 …"""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Reply({"error": {"code": "refused", "message": message, "field": None}}, status=status, headers=headers)


def redirect(to: str, status: int = 307) -> Reply:
    return Reply(b"", status=status, headers={"Location": to})


def silence() -> Reply:
    """The connection is accepted, and nothing is answered until the service stops."""
    return Reply(b"", after="silence")


def closing() -> Reply:
    """The connection is closed instead of an answer."""
    return Reply(b"", after="close")


def garbage(raw: bytes = b"<html>it works</html>") -> Reply:
    """A signed answer that is no JSON."""
    return Reply(raw)


def unsigned(reply: Reply) -> Reply:
    """The answer of someone who doesn't know the secret."""
    return replace(reply, trust="unsigned")


def signed_for_another(reply: Reply) -> Reply:
    """A genuine answer, to another message."""
    return replace(reply, trust="signed_for_another")


class ScriptedService:
    """Answers what its script says, and remembers what it was sent.

    Without a script it accepts errors (`pending`), and judges results by their evidence.

    Args:
        secret: what both sides sign with; its own where none is given
        port: where to listen; a free one by default
    """

    def __init__(self, *, secret: str | None = None, port: int = 0) -> None:
        self.secret = secret or signatures.PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
        self.port = port
        self.received: list[Received] = []
        """All genuine messages, syncs too, in their order."""
        self.rejected: list[str] = []
        """Why messages were not taken: signatures, sizes, malformed bodies."""
        self._scripts: dict[Kind, deque[Scripted]] = {kind: deque() for kind in get_args(Kind)}
        self._always: Reply | None = None
        self._accepted: dict[str, Json] = {}
        self._reports: dict[str, Json] = {}
        self._version = 0
        self._desired: list[Json] = []
        self._commands: list[Json] = []
        self._outcomes: list[Json] = []
        self._changed = threading.Condition()
        self._server: _Server | None = None

    # Life

    def start(self) -> Self:
        """Listen; after `stop`, on the same port."""
        if self._server is None:
            self._server = _Server(("127.0.0.1", self.port), self)
            self.port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.05,), name="scripted", daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse connections from now on, and end those that are open."""
        server, self._server = self._server, None
        if server is None:
            return
        with self._changed:
            server.stopping = True
            self._changed.notify_all()
        server.shutdown()
        server.server_close()
        server.close_connections()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def connected(self, **settings: Any) -> Iterator[Self]:
        """Django's settings name this service meanwhile, `settings` are added to them, and what the application knew of
        an earlier service is forgotten. No agent thread, unless `UPRIGHT_AGENT=True` is given."""
        from django.test import override_settings

        from error_logging import client, desired_state, drain

        client.reset()
        with override_settings(
            **{"UPRIGHT_URL": self.url, "UPRIGHT_SECRET": self.secret, "UPRIGHT_AGENT": False, **settings}
        ):
            try:
                yield self
            finally:
                desired_state.reset()
                drain.drainer.forget()
        client.reset()

    # The script

    def on_error(self, *replies: Scripted) -> None:
        """Answers to the next errors, one each. What comes after them is answered as without a script."""
        self._scripts["error"].extend(replies)

    def on_result(self, *replies: Scripted) -> None:
        self._scripts["result"].extend(replies)

    def on_recovery(self, *replies: Scripted) -> None:
        """Answers to recoveries of past errors."""
        self._scripts["recovery"].extend(replies)

    def on_sync(self, *replies: Scripted) -> None:
        self._scripts["sync"].extend(replies)

    def on_alert_test(self, *replies: Scripted) -> None:
        """Answers to the next tests of webhooks; without a script all of them work."""
        self._scripts["alert_test"].extend(replies)

    def always(self, reply: Reply | None) -> None:
        """Answer everything so, health checks too; None ends it."""
        self._always = reply

    def tell(
        self, *, desired: list[Json] | None = None, commands: list[Json] | None = None,
        outcomes: list[Json] | None = None,
    ) -> None:  # fmt: skip
        """News for the agents: the complete list of directives, commands (the body's `command` of `apply` and the
        others), outcomes. Syncs that are held are answered at once."""
        with self._changed:
            if desired is not None:
                self._version += 1
                self._desired = desired
            self._commands += commands or []
            self._outcomes += outcomes or []
            self._changed.notify_all()

    # What it was sent

    @property
    def errors(self) -> list[Received]:
        return self._of("error")

    @property
    def results(self) -> list[Received]:
        return self._of("result")

    @property
    def recoveries(self) -> list[Received]:
        return self._of("recovery")

    @property
    def syncs(self) -> list[Received]:
        return self._of("sync")

    def wait_for(self, kind: Kind, count: int = 1, *, timeout_s: float = WAIT_S) -> list[Received]:
        """The messages of a kind, once there are `count`. Raises AssertionError where they don't come."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._of(kind)) >= count, timeout_s):
                raise AssertionError(f"{len(self._of(kind))} of {count} {kind} messages came within {timeout_s:g} s")
            return self._of(kind)

    def _of(self, kind: Kind) -> list[Received]:
        return [one for one in list(self.received) if one.kind == kind]

    # Answering; in the server's threads

    def remember(self, message: Received) -> Reply:
        """Take a genuine message, and the answer to it."""
        with self._changed:
            self.received.append(message)
            self._changed.notify_all()
            if self._always is not None:
                return self._always
            if message.delivery_id in self._accepted and message.kind != "sync":
                known = self._reports.get(message.error_id, report("pending"))
                return Reply({"recovery": known}, status=202 if known["status"] == "pending" else 200)
            script = self._scripts[message.kind]
            scripted = script.popleft() if script else None
        reply = scripted(message) if callable(scripted) else scripted
        if reply is None:
            reply = self._unscripted(message)
        if message.kind != "sync" and isinstance(reply.body, dict) and reply.status < 300:
            with self._changed:
                self._accepted[message.delivery_id] = reply.body
                if "recovery" in reply.body:
                    self._reports[message.error_id] = reply.body["recovery"]
        return reply

    def completed(self, message: Received, reply: Reply) -> bytes:
        """The body as it goes out."""
        if isinstance(reply.body, bytes):
            return reply.body
        body = reply.body
        if message.kind != "sync" and "recovery" in body:
            severity = (message.body.get("error") or {}).get("severity") or "low"
            common = {"schema_version": 1, "error_id": message.error_id, "recovery_id": None, "command": None}
            body = {**common, "severity": severity, **body}
        return json.dumps(body).encode()

    def wait_until(self, event: threading.Event, seconds: float) -> bool:
        """Whether `event` was set in time."""
        server, deadline = self._server, time.monotonic() + seconds
        while time.monotonic() < deadline and server is not None and not server.stopping:
            if event.wait(min(0.02, seconds)):
                return True
        return event.is_set()

    @property
    def answers_always(self) -> Reply | None:
        return self._always

    def _unscripted(self, message: Received) -> Reply:
        if message.kind == "sync":
            return self._sync(message)
        if message.kind == "alert_test":
            sent = [{"channel": "slack", "status": "sent"} for _ in message.body["webhooks"]]
            return Reply({"schema_version": 1, "results": sent})
        if message.kind != "result":
            return pending()
        evidence = message.result.get("evidence") or {}
        told = message.result.get("acknowledgements") or []
        strategy = "retry" if evidence.get("kind") == "retry" else "replay"
        known = {str(one["directive_id"]): one for one in told}
        verdict = {"passed": "recovered", "failed": "not_recovered"}.get(str(evidence.get("outcome")), "unknown")
        names = [self._strategy(message.error_id, identity) for identity in known] or [strategy]
        return final(report(verdict, *(action(name, verdict) for name in names)))

    def _strategy(self, error_id: str, directive_id: str) -> str:
        for body in self._accepted.values():
            for one in (body.get("command") or {}).get("directives", []):
                if one["id"] == directive_id:
                    return str(one["strategy"])
        return "unknown"

    def _sync(self, message: Received) -> Reply:
        hold_s = float(message.body.get("hold_ms") or 0) / 1000
        server = self._server
        with self._changed:
            received = {str(one) for one in message.body.get("outcomes_received") or []}
            self._outcomes = [one for one in self._outcomes if str(one.get("recovery_id")) not in received]
            self._changed.wait_for(
                lambda: (
                    self._version > int(message.body.get("desired_version") or 0)
                    or bool(self._commands or self._outcomes)
                    or server is None
                    or server.stopping
                ),
                hold_s,
            )
            commands, self._commands = self._commands, []
            return Reply(
                {
                    "schema_version": 1,
                    "version": self._version,
                    "desired": self._desired,
                    "commands": commands,
                    "outcomes": list(self._outcomes),
                }
            )


def _command(kind: str, deadline_ms: int, **more: Any) -> Reply:
    command = {"id": str(uuid4()), "kind": kind, "deadline_ms": deadline_ms, **more}
    return Reply({"recovery": report("pending"), "command": command})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], service: ScriptedService) -> None:
        self.service = service
        self.stopping = False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        with self._lock:
            still_open = list(self._open)
        for connection in still_open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that went away, as those whose time is up do.
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        always = self.server.service.answers_always
        if always is not None:
            self._send("", always, always.body if isinstance(always.body, bytes) else json.dumps(always.body).encode())
        else:
            self._plain(200 if self.path == "/healthz" else 404, {"status": "ok"})

    def do_POST(self) -> None:
        service = self.server.service
        parts = urlsplit(self.path)
        kind = _kind(parts.path)
        length = int(self.headers.get("content-length") or 0)
        raw = self.rfile.read(length)
        received = {name.lower(): text for name, text in self.headers.items()}
        try:
            if kind is None:
                self._reject(404, f"there is no {parts.path}")
            if length > MAX_BODY:
                self._reject(413, "the body is larger than 64 KiB")
            delivery_id = self._verified(received, raw)
            body = self._json(raw)
        except _Rejected:
            return
        message = Received(
            kind=kind,
            path=parts.path,
            wait_ms=int(parse_qs(parts.query).get("wait_ms", ["0"])[0]),
            delivery_id=delivery_id,
            tenant=received.get("upright-tenant", ""),
            body=body,
            signature=received[signatures.SIGNATURE],
            timestamp=int(received[signatures.TIMESTAMP]),
        )
        reply = service.remember(message)
        if reply.until is not None and not service.wait_until(reply.until, message.wait_ms / 1000):
            reply = pending()
        self._send(delivery_id, reply, service.completed(message, reply))

    def _verified(self, received: dict[str, str], raw: bytes) -> str:
        try:
            return signatures.verify([self.server.service.secret], received, raw)
        except signatures.SignatureInvalid as invalid:
            self._reject(401, str(invalid))

    def _json(self, raw: bytes) -> Json:
        try:
            body = json.loads(raw)
        except ValueError:
            self._reject(400, "the body is no JSON")
        if not isinstance(body, dict):
            self._reject(422, "the body must be an object")
        return body

    def _reject(self, status: int, why: str) -> NoReturn:
        self.server.service.rejected.append(why)
        self._plain(status, {"error": {"code": "rejected", "message": why, "field": None}})
        raise _Rejected

    def _plain(self, status: int, body: Json) -> None:
        self._send("", Reply(body, status=status, trust="unsigned"), json.dumps(body).encode())

    def _send(self, delivery_id: str, reply: Reply, raw: bytes) -> None:
        if reply.after == "silence":
            self.server.service.wait_until(threading.Event(), 3600)
        if reply.after != "answer":
            self.close_connection = True
            return
        self.send_response(reply.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(raw)), **reply.headers}
        if reply.trust != "unsigned":
            answered = delivery_id if reply.trust == "signed" else str(uuid4())
            headers |= signatures.headers(self.server.service.secret, answered or "none", raw)
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Rejected(Exception):
    """An answer has been sent."""


def _kind(path: str) -> Kind | None:
    match path.strip("/").split("/"):
        case ["v1", "errors"]:
            return "error"
        case ["v1", "errors", _, "results"]:
            return "result"
        case ["v1", "errors", _, "recoveries"]:
            return "recovery"
        case ["v1", "sync"]:
            return "sync"
        case ["v1", "alerts", "test"]:
            return "alert_test"
        case _:
            return None
