"""A server that takes Slack's incoming webhooks, and refuses what Slack would: `with slack_server() as slack`."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

MAX_BLOCKS = 50
_TEXTS = {"plain_text", "mrkdwn"}
_SECTION, _FIELD, _HEADER, _CONTEXT, _ACTIONS = 3000, 2000, 150, 10, 25
_OPTIONAL_KEYS = {"emoji", "verbatim"}


@dataclass
class SlackServer:
    url: str
    """Of a webhook that works; /services/none is one that doesn't."""
    host: str
    """For UPRIGHT_ALERT_HOSTS."""
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Those that were taken."""
    refused: list[str] = field(default_factory=list[str])
    """Why others were not."""
    failing: list[int] = field(default_factory=list[int])
    """Statuses of the next answers; 3xx leads to /elsewhere."""
    requests: list[str] = field(default_factory=list[str])
    """Paths asked for, with their method."""
    came: threading.Condition = field(default_factory=threading.Condition)

    def text_of(self, index: int = -1) -> str:
        """Every text of a message, one a line."""
        return "\n".join(_texts(self.messages[index].get("blocks", [])))


def problem(payload: object) -> str | None:
    """Why Slack would refuse it, in Slack's word for it and with the place; None if it would not."""
    if not isinstance(payload, dict):
        return "invalid_payload"
    given = cast("dict[str, Any]", payload)
    text, blocks = given.get("text"), given.get("blocks")
    if not text and not blocks:
        return "no_text"
    if blocks is None:
        return None
    if not isinstance(blocks, list) or len(cast("list[Any]", blocks)) > MAX_BLOCKS:
        return f"invalid_blocks: more than {MAX_BLOCKS}, or no list"
    for index, block in enumerate(cast("list[Any]", blocks)):
        if found := _block_problem(block):
            return f"invalid_blocks: {index}: {found}"
    return None


def _block_problem(given: Any) -> str | None:
    if not isinstance(given, dict):
        return "a block is an object"
    block = cast("dict[str, Any]", given)
    kind = block.get("type")
    if kind == "divider":
        return None
    if kind == "header":
        return _text_problem(block.get("text"), {"plain_text"}, _HEADER)
    if kind == "section":
        fields: list[Any] | None = block.get("fields")
        if block.get("text") is None and not fields:
            return "a section has text or fields"
        if block.get("text") is not None and (found := _text_problem(block["text"], _TEXTS, _SECTION)):
            return found
        if fields is not None and not 1 <= len(fields) <= 10:
            return "1 to 10 fields"
        return next((found for one in fields or [] if (found := _text_problem(one, _TEXTS, _FIELD))), None)
    if kind == "context":
        elements: list[Any] = block.get("elements") or []
        if not 1 <= len(elements) <= _CONTEXT:
            return f"1 to {_CONTEXT} elements"
        return next((found for one in elements if (found := _text_problem(one, _TEXTS, _SECTION))), None)
    if kind == "actions":
        return None if 1 <= len(block.get("elements") or []) <= _ACTIONS else f"1 to {_ACTIONS} elements"
    return f"unsupported type {kind!r}"


def _text_problem(text: Any, kinds: set[str], most: int) -> str | None:
    if not isinstance(text, dict):
        return "a text is an object"
    given = cast("dict[str, Any]", text)
    if given.get("type") not in kinds:
        return f"type is {' or '.join(sorted(kinds))}"
    if unknown := set(given) - {"type", "text"} - _OPTIONAL_KEYS:
        return f"unknown keys {sorted(unknown)}"
    said = given.get("text")
    return None if isinstance(said, str) and 1 <= len(said) <= most else f"1 to {most} characters"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in cast("dict[str, Any]", value).items():
            if key == "text" and isinstance(one, str):
                yield one
            else:
                yield from _texts(one)
    elif isinstance(value, list):
        for one in cast("list[Any]", value):
            yield from _texts(one)


@contextlib.contextmanager
def slack_server(port: int = 0) -> Generator[SlackServer]:
    """On this machine, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            slack.requests.append(f"GET {self.path}")
            self._answer(405, "method_not_allowed")

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            with slack.came:
                slack.requests.append(f"POST {self.path}")
                status, said = self._judge(raw)
                slack.came.notify_all()
            self._answer(status, said)

        def _judge(self, raw: bytes) -> tuple[int, str]:
            if slack.failing:
                return slack.failing.pop(0), "scripted"
            if not slack.url.endswith(self.path):
                return 404, "no_service"
            payload: Any = None
            with contextlib.suppress(ValueError):
                payload = json.loads(raw)
            is_json = self.headers.get("content-type", "").startswith("application/json")
            found = problem(payload) if is_json else "invalid_payload"
            if found:
                slack.refused.append(found)
                return 400, found.partition(":")[0]
            slack.messages.append(payload)
            return 200, "ok"

        def _answer(self, status: int, said: str) -> None:
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", "/elsewhere")
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(said.encode())))
            self.end_headers()
            self.wfile.write(said.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Paths are secrets here too."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        host = f"127.0.0.1:{server.server_address[1]}"
        slack = SlackServer(f"http://{host}/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX", host)
        thread = threading.Thread(target=server.serve_forever, name="slack", daemon=True)
        thread.start()
        try:
            yield slack
        finally:
            server.shutdown()
            thread.join()
