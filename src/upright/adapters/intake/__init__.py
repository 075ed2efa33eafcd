"""HTTP in: verify, store, hold until there is a verdict, a command or news."""

from upright.adapters.intake.app import create_app

__all__ = ["create_app"]
