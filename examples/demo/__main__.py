"""`make demo`: breaks the shop for real in five ways, and exits 0 only if what was claimed can be checked elsewhere.

Everything runs on free ports in a temporary directory. Beside the shop runs a second instance of it with recovery
switched off: each fault must still be there when the first one's repair is verified.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from faults import FAULTS, Outcome
from rich.console import Console
from stage import Stage, staged
from timeline import Timeline

from upright.cli.signals import interruptible
from upright.errors import UprightError


def main() -> int:
    parser = argparse.ArgumentParser(description="Break the sample shop, see it repaired, check that it was.")
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"only these of: {', '.join(FAULTS)}")
    parser.add_argument("--keep", type=Path, help="keep logs and data in this directory")
    wanted = parser.parse_args()
    unknown = sorted(set(wanted.faults) - set(FAULTS))
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}; there are {', '.join(FAULTS)}")

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120  # a log, where 80 columns would cut the table
    began = time.monotonic()
    try:
        with (
            interruptible(),
            tempfile.TemporaryDirectory(prefix="upright-demo-", ignore_cleanup_errors=True) as scratch,
            staged(wanted.keep or Path(scratch), console) as stage,
        ):
            outcomes = [play(name, stage, console) for name in wanted.faults or FAULTS]
            good = summarise(outcomes, console)
    except UprightError as error:
        console.print(f"[bold red]Error:[/] {error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    console.print(f"{time.monotonic() - began:.0f} s in all.", style="dim")
    return 0 if good else 1


def play(name: str, stage: Stage, console: Console) -> Outcome:
    fault = FAULTS[name]
    timeline = Timeline(console, fault.title)
    try:
        outcome = fault.play(stage, timeline)
    except Exception as error:  # what goes wrong here is a failed check, and the others are still worth seeing
        timeline.check(f"played to its end ({type(error).__name__}: {error})", False)
        outcome = Outcome(fault.name)
    outcome.checks = timeline.checks
    return outcome


def summarise(outcomes: list[Outcome], console: Console) -> bool:
    from rich.table import Table

    table = Table(title="What came of it", title_justify="left")
    for column in ("fault", "recovery off", "recovery on", "by", "Prefect run", "checks"):
        table.add_column(column)
    for one in outcomes:
        passed = sum(one.checks.values())
        style = "green" if passed == len(one.checks) else "bold red"
        shown = (one.title, one.without, one.answer, one.strategy, one.flow_state)
        table.add_row(*shown, f"[{style}]{passed} of {len(one.checks)}[/]")
    console.print()
    console.print(table)
    good = all(all(one.checks.values()) for one in outcomes)
    if good:
        console.print(
            "[bold green]Everything that was claimed was found in PostgreSQL, Redis, the mailbox and Prefect.[/]"
        )
    else:
        for one in outcomes:
            for check, passed in one.checks.items():
                if not passed:
                    console.print(f"[bold red]✗ {one.title}:[/] {check}", soft_wrap=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
