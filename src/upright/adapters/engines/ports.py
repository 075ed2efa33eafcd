"""TCP ports of this machine."""

from __future__ import annotations

import socket

from upright.errors import EngineFailed


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago. Another process may still be quicker: whoever uses it must say so clearly."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def listening(port: int, host: str = "127.0.0.1", timeout_s: float = 0.5) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False


def require_free(port: int, *, what: str, way_out: str, host: str = "127.0.0.1") -> None:
    """Raises EngineFailed, naming `what` wants the port and the `way_out`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free to a server
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EngineFailed(f"{what} can't listen on {host}:{port}: {error.strerror}. {way_out}") from error
