"""A small service of one process, for supervisord, that can lock itself out."""

from __future__ import annotations

import http.server
import sys
import threading
from typing import Any

lock = threading.Lock()


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/deadlock":
            lock.acquire()
        with lock:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    def log_message(self, format: str, *args: Any) -> None:
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Page).serve_forever()
