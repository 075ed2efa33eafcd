"""Topics: what one can wait for. They travel as notification payloads, under 8,000 bytes."""

from __future__ import annotations

from uuid import UUID

QUEUE = "queue"
"""A recovery waits for admission."""


def of_error(error_id: UUID) -> str:
    """A command for the caller that waits for this error."""
    return f"error:{error_id}"


def of_recovery(recovery_id: UUID) -> str:
    """The recovery has a verdict."""
    return f"recovery:{recovery_id}"


def of_command(command_id: UUID) -> str:
    """The command has a result."""
    return f"command:{command_id}"


def of_directive(directive_id: UUID) -> str:
    """A process has acknowledged the directive."""
    return f"directive:{directive_id}"


def of_service(tenant: str, service: str) -> str:
    """New desired state, a command for an agent, or an outcome."""
    return f"service:{tenant}:{service}"
