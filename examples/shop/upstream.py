"""The carrier: an HTTP server that resets the connections of its next callers as often as it was told to.

`python upstream.py PORT`; POST /arm?resets=2, GET /quote, GET /healthz.
"""

import contextlib
import json
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Carrier(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    resets = 0
    calls = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        if urlsplit(self.path).path == "/quote" and self.must_reset():
            # Linger of 0 s: close sends RST, as a crashed peer's host does.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        self.answer({"price": "7.95", "days": 2, "calls": Carrier.calls, "resets_left": Carrier.resets})

    def do_POST(self) -> None:
        wanted = parse_qs(urlsplit(self.path).query).get("resets", ["2"])[0]
        with Carrier.lock:
            Carrier.resets, Carrier.calls = int(wanted), 0
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer({"resets": Carrier.resets})

    def must_reset(self) -> bool:
        with Carrier.lock:
            Carrier.calls += 1
            if Carrier.resets > 0:
                Carrier.resets -= 1
                return True
        return False

    def answer(self, body: dict[str, object]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # reset on purpose
            super().finish()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Carrier).serve_forever()
