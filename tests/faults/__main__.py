"""`make faults`: breaks a real stack in every way of the catalogue, and writes what came of it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from upright.cli.signals import interruptible

from .catalogue import catalogue
from .report import merged, publish, summary
from .stage import Stage
from .trial import Outcome, run


def main() -> int:
    faults = catalogue()
    parser = argparse.ArgumentParser(prog="faults", description="Break it for real, and see what is repaired.")
    parser.add_argument("names", nargs="*", metavar="FAULT", help="only these")
    parser.add_argument("--keep", type=Path, help="keep logs and data in this directory")
    parser.add_argument("--merge", action="store_true", help="put these in their places in the latest results")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    wanted = parser.parse_args()
    unknown = sorted(set(wanted.names) - {one.name for one in faults})
    if unknown:
        parser.error(f"no such fault: {', '.join(unknown)}")
    chosen = [one for one in faults if not wanted.names or one.name in wanted.names]
    began, outcomes = time.monotonic(), list[Outcome]()
    with (
        interruptible(),
        tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as scratch,
    ):
        place = wanted.keep or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        stage = Stage(place.absolute())
        try:
            stage.open()
            for number, one in enumerate(chosen, 1):
                outcome = run(stage, one)
                outcomes.append(outcome)
                _tell(number, len(chosen), outcome)
        finally:
            stage.close()
    rows, seconds = [one.row() for one in outcomes], time.monotonic() - began
    found = merged(rows, wanted.results, seconds) if wanted.merge else summary(rows, seconds=seconds)
    if wanted.merge or not wanted.names:
        publish(found, wanted.results)
    print(
        f"\n{found['repaired']} of {found['repairable']} repairable repaired, {found['wrong_verdicts']} wrong verdicts,"
        f" {found['side_effects_left']} side effects left, p50 {found['repair_p50_ms']} ms,"
        f" p95 {found['repair_p95_ms']} ms; {found['seconds']} s in all."
    )
    enough = found["repaired"] >= 0.9 * found["repairable"]
    return 0 if enough and not found["wrong_verdicts"] and not found["side_effects_left"] else 1


def _tell(number: int, of: int, outcome: Outcome) -> None:
    mark = "ok  " if outcome.as_expected else "FAIL"
    after = f" after {outcome.repair_ms:.0f} ms" if outcome.repair_ms is not None else ""
    by = f" by {outcome.strategy}" if outcome.strategy else ""
    print(
        f"{number:2}/{of} {mark} {outcome.fault.name}: {outcome.verdict}{by}{after} ({outcome.took_s:.0f} s)",
        flush=True,
    )
    if not outcome.as_expected:
        for text in (*outcome.problems, *outcome.left, *(["WRONG VERDICT"] if outcome.wrong else []), outcome.reason):
            print(f"          {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
