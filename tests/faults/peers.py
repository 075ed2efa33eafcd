"""What the patient calls. Breaks are counted by who calls: the patient and the control meet the same faults."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

ALONE_S = 1.0
"""How long an overloaded peer must be left alone to get well."""


class Peers:
    def __init__(self) -> None:
        self.left: Counter[tuple[str, str]] = Counter()
        """How many more calls of a name fail, for a caller."""
        self.down: set[str] = set()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.hooks: dict[str, Callable[[dict[str, str]], None]] = {}
        self._overloaded: set[tuple[str, str]] = set()
        self._last: dict[tuple[str, str], float] = {}
        self._inside: Counter[tuple[str, str]] = Counter()
        self._logins: defaultdict[str, list[float]] = defaultdict(list)
        self._lock = threading.Lock()
        peers = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                peers._answer(self, parts.path.strip("/"), query)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def arm(self, name: str, times: int, *who: str) -> None:
        for one in who or ("patient", "control"):
            self.left[name, one] = times

    def overload(self, name: str) -> None:
        with self._lock:
            for who in ("patient", "control"):
                self._overloaded.add((name, who))
                self._last[name, who] = time.monotonic()

    def well(self) -> None:
        """The faults are over."""
        with self._lock:
            self.left.clear()
            self.down.clear()
            self.hooks.clear()
            self._overloaded.clear()
            self._logins.clear()

    def _answer(self, to: BaseHTTPRequestHandler, name: str, query: dict[str, str]) -> None:
        who = query.get("who", "")
        with self._lock:
            self.calls[name, who] += 1
            failing = self.left[name, who] > 0
            if failing:
                self.left[name, who] -= 1
        kind = name.partition("-")[0]
        if name in self.down or (kind == "reset" and failing):
            return _reset(to)
        if name in self.hooks:
            self.hooks[name](query)
        match kind:
            case "date" if failing:
                when = datetime.now(UTC) + timedelta(seconds=2)
                return _send(to, 503, {"Retry-After": format_datetime(when, usegmt=True)})
            case "503" | "429" | "401" | "500" if failing:
                return _send(to, int(kind), {"Retry-After": "1"} if kind in ("503", "429") else {})
            case "slow":
                time.sleep(0.8)
            case "slower":
                time.sleep(8)
            case "redirect":
                return _send(to, 302, {"Location": f"/slow?who={who}"})
            case "overloaded" if self._still_overloaded(name, who):
                if "503" in name:
                    return _send(to, 503)
                return _reset(to)
            case "licence":
                return self._limited(to, name, who)
            case "directory" if self._flooded(who):
                return _send(to, 403)
            case _:
                pass
        return _send(to, 200)

    def _still_overloaded(self, name: str, who: str) -> bool:
        with self._lock:
            if (name, who) not in self._overloaded:
                return False
            now = time.monotonic()
            alone_s, self._last[name, who] = now - self._last[name, who], now
            if alone_s < ALONE_S:
                return True
            self._overloaded.discard((name, who))
            return False

    def _limited(self, to: BaseHTTPRequestHandler, name: str, who: str) -> None:
        with self._lock:
            if self._inside[name, who] >= 3:
                full = True
            else:
                full = False
                self._inside[name, who] += 1
        if full:
            return _send(to, 503)
        try:
            time.sleep(0.15)
        finally:
            with self._lock:
                self._inside[name, who] -= 1
        return _send(to, 200)

    def _flooded(self, who: str) -> bool:
        """It refuses everybody while more than five attempts came within the last second."""
        with self._lock:
            now = time.monotonic()
            recent = [at for at in self._logins[who] if at > now - 1]
            self._logins[who] = [*recent, now]
            return len(recent) > 5


class WrongCertificate:
    """An HTTPS server whose certificate nobody has signed."""

    def __init__(self, place: Path) -> None:
        certificate, key = _self_signed(place)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._context = context
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            try:
                self._context.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

    def close(self) -> None:
        self._socket.close()


def _self_signed(place: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody.else")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    certificate, private = place / "certificate.pem", place / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, private


def _send(to: BaseHTTPRequestHandler, status: int, headers: dict[str, str] | None = None) -> None:
    body = b"fresh"
    to.send_response(status)
    for name, text in (headers or {}).items():
        to.send_header(name, text)
    to.send_header("Content-Length", str(len(body)))
    to.send_header("Connection", "close")
    to.end_headers()
    if to.command != "HEAD":
        to.wfile.write(body)
    to.close_connection = True


def _reset(to: BaseHTTPRequestHandler) -> None:
    to.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    to.close_connection = True
    # Closing with this set sends a reset instead of an end.
    to.connection.close()
