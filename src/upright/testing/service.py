"""A whole service for tests: embedded PostgreSQL, a Prefect server, Upright itself, on free ports."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from upright.adapters import default_project
from upright.adapters.stack import Ports, Stack, build

GUARDRAILS = """\
# Tests make things fail on purpose, the same thing again and again.
everything: {}
service: {}
runbook: {}
strategies: {}
repeated_failures: {failures: 100}
failing_service: {window: 100, at_least: 100}
trust: {demote_below: 0}
"""


@dataclass(frozen=True)
class RunningService:
    url: str
    """For UPRIGHT_URL in Django."""
    secret: str
    """For UPRIGHT_SECRET in Django."""
    prefect_api_url: str
    database_url: str
    """The service's own database, postgresql://… ."""
    data_dir: Path
    """With the logs of its parts."""


@contextmanager
def running_service(
    project: Path | None = None,
    *,
    data_dir: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Generator[RunningService]:
    """Starts a service and stops it at the end; it is ready when the block begins, some ten seconds later.

    `project` has flows and runbooks (default: those that ship with Upright, without guardrails); `environment` is more
    of it, such as UPRIGHT_LEASE_S. Call it from a thread that outlives the block: the processes end with the thread
    that started them.
    """
    with tempfile.TemporaryDirectory(prefix="upright-", ignore_cleanup_errors=True) as scratch:
        place = data_dir or Path(scratch)
        if project is None:
            project = Path(scratch) / "project"
            default_project.make(project)
            (project / "runbooks" / "guardrails.yaml").write_text(GUARDRAILS, "utf-8")
        layout = build(place, project, ports=Ports.any(), environment=environment, durable=False)
        stack = Stack(layout.parts)
        stack.start()
        try:
            yield RunningService(
                layout.service_url, layout.secret, layout.prefect_api_url, layout.database_url, layout.data_dir
            )
        finally:
            stack.stop()
