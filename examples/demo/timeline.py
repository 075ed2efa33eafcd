"""What happened, line by line, with the seconds since the fault was made."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule


class Timeline:
    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.checks: dict[str, bool] = {}
        self._began = time.monotonic()
        console.print()
        console.print(Rule(f"[bold]{title}[/]", align="left"))

    def say(self, text: str, *, style: str = "") -> None:
        stamp = f"{time.monotonic() - self._began:6.2f} s"
        self.console.print(f"[dim]{stamp}[/]  [{style or 'default'}]{escape(text)}[/]", soft_wrap=True)

    def answered(self, who: str, status: int, body: dict[str, Any]) -> None:
        """An answer of the shop, with what it says was done."""
        error, report = body.get("error"), body.get("recovery")
        if error is None:
            self.say(f"{who}: {status}, works", style="green" if status == 200 else "red")
            return
        self.say(f"{who}: {status} {error.get('type')}: {error.get('message', '')[:100]}", style="red")
        if report is None:
            return
        self.say(f"    recovery: {report.get('status')}. {report.get('message')}")
        for action in report.get("actions", []):
            reason = f" ({action['reason']})" if action.get("reason") else ""
            took = f", {action['duration_ms']:.0f} ms" if action.get("duration_ms") else ""
            self.say(f"      {action['strategy']}: {action.get('verdict')}{took}{reason}", style="cyan")

    def check(self, claim: str, holds: object) -> bool:
        """One claim, looked up where it can't have been made up."""
        self.checks[claim] = bool(holds)
        mark, style = ("✓", "green") if holds else ("✗", "bold red")
        self.say(f"{mark} {claim}", style=style)
        return bool(holds)
