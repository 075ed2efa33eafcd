"""Errors that Upright raises. The docstring of each is its default message.

UprightError
├── ConfigurationError          a setting or file is wrong; says which and what is allowed
│   ├── RunbookError            one or more problems in runbook files
│   └── PlatformsError          one or more problems in platforms.yaml
├── RequestRefused              an incoming message can't be taken; carries an HTTP status
│   ├── SignatureRefused        401
│   ├── MessageTooLarge         413
│   ├── MalformedMessage        400
│   └── ForeignService          403
├── NotFound                    an id that is not known; carries what was looked for
├── StaleEpoch                  a write by a runner that has lost its recovery
├── Stopped                     recovery is stopped here; nothing is put in force
├── RecoveryInFlight            another recovery of the incident is under way
├── PlatformFailed              a process manager did not do what was asked; says what is so
├── ChannelRefused              an alert that a channel will not take, however often it is tried
├── EngineFailed                an embedded engine did not start or stopped
└── Unavailable                 something we depend on does not answer (retryable)
"""

from __future__ import annotations

from typing import ClassVar


class UprightError(Exception):
    """Upright could not do what was asked."""

    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None) -> None:
        doc = (type(self).__doc__ or "").strip().splitlines()[0]
        super().__init__(message or doc)


class ConfigurationError(UprightError):
    """A setting is wrong."""


class RunbookError(ConfigurationError):
    """The runbooks have problems."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class PlatformsError(ConfigurationError):
    """platforms.yaml has problems."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class RequestRefused(UprightError):
    """The message can't be taken."""

    status: ClassVar[int] = 400

    def __init__(self, message: str | None = None, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        """The part of the message that is wrong, as a path with dots."""


class SignatureRefused(RequestRefused):
    """The signature is missing, malformed, too old, or made with another secret."""

    status = 401


class MessageTooLarge(RequestRefused):
    """The body is larger than 64 KiB."""

    status = 413


class MalformedMessage(RequestRefused):
    """The body is not a valid message."""

    status = 400


class ForeignService(RequestRefused):
    """This secret does not speak for that service."""

    status = 403


class NotFound(UprightError):
    """There is nothing under that id."""


class StaleEpoch(UprightError):
    """Another runner has taken this recovery over; this write is refused."""


class RecoveryInFlight(UprightError):
    """Another recovery of this incident is under way."""


class PlatformFailed(UprightError):
    """The process manager did not do what was asked."""


class ChannelRefused(UprightError):
    """The channel does not take the alert."""


class Stopped(UprightError):
    """Recovery is stopped."""


class EngineFailed(UprightError):
    """An embedded engine did not start."""


class Unavailable(UprightError):
    """Something that Upright depends on does not answer."""

    retryable = True
