"""The command line, `upright`."""

from upright.cli.app import app, main

__all__ = ["app", "main"]
