"""How many requests the server of this process takes at a time."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

_UNKNOWN = 4
"""Assumed where the server does not say: one waiter of four threads."""
_ASYNCHRONOUS = 32
"""Assumed of an ASGI server, where a request that waits holds no thread of the application."""
_ASGI_SERVERS = ("uvicorn", "daphne", "hypercorn", "granian")


def threads_of_server(argv: Sequence[str] | None = None, environ: dict[str, str] | None = None) -> int:
    """Threads of one gunicorn worker, from its command line or GUNICORN_CMD_ARGS; 4 where neither says, and 32 under
    ASGI."""
    arguments = list(sys.argv if argv is None else argv)
    variables = dict(os.environ) if environ is None else environ
    if any(server in argument.lower() for argument in arguments for server in _ASGI_SERVERS):
        return _ASYNCHRONOUS
    if not arguments or "gunicorn" not in arguments[0]:
        return _UNKNOWN
    try:
        from_environment = shlex.split(variables.get("GUNICORN_CMD_ARGS", ""))
    except ValueError:
        from_environment = []
    # The command line wins over the variable, so it is asked first.
    for given in (arguments[1:], from_environment):
        found = _option(given)
        if found is not None:
            return found
    return _UNKNOWN


def _option(arguments: list[str]) -> int | None:
    found = None
    for position, argument in enumerate(arguments):
        value = None
        if argument == "--threads" and position + 1 < len(arguments):
            value = arguments[position + 1]
        elif argument.startswith("--threads="):
            value = argument.partition("=")[2]
        if value is not None and value.isdigit() and int(value) > 0:
            found = int(value)
    return found
