"""The kill file: while it exists, Upright changes nothing in the processes that see it, service or no service."""

from __future__ import annotations

from error_logging.conf import current

LOOK_EVERY_S = 0.5
REASON = "the kill file is there (UPRIGHT_KILL_FILE)"


def configured() -> bool:
    return current().kill_file is not None


def exists() -> bool:
    """What can't be looked at, such as a directory without rights, counts as there: someone may have wanted it."""
    path = current().kill_file
    if path is None:
        return False
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True
