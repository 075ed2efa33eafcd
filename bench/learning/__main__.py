"""`make learn`: everything, seeded, in some minutes; writes models/results."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench.learning.simulation import (
    cold_start_agrees,
    draw_explorations,
    judge_world,
    one_thread,
    play_world,
    scoring_speed,
)

RESULTS = Path(__file__).parents[2] / "models" / "results"
LOGS = (1000, 3000)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make learn", description=__doc__)
    parser.add_argument("--worlds", type=int, default=24, help="of each kind (default: 24)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one for each core)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    one_thread()
    began = time.monotonic()

    def said(what: str) -> None:
        sys.stderr.write(f"{time.monotonic() - began:5.0f} s  {what}\n")

    said(f"speed, exploration, cold start; then {given.worlds} worlds of each kind")
    speed, draws, cold_start = scoring_speed(), draw_explorations(), cold_start_agrees()
    seeds = range(given.worlds)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=context, initializer=os.nice, initargs=(10,)) as pool:
        guide = [pool.submit(play_world, seed, None) for seed in seeds]
        chosen = [pool.submit(play_world, seed, 3) for seed in seeds]
        judged = {length: [pool.submit(judge_world, seed, length) for seed in seeds] for length in LOGS}
        everything = [*guide, *chosen, *(one for some in judged.values() for one in some)]
        for index, one in enumerate(everything, 1):
            one.result()
            if index % 10 == 0 or index == len(everything):
                said(f"{index} of {len(everything)} simulations")
        from bench.learning import report

        results = report.Results(
            guide=[one.result() for one in guide],
            chosen=[one.result() for one in chosen],
            judged={length: [each for one in some for each in one.result()] for length, some in judged.items()},
            draws=draws,
            speed=speed,
            cold_start=cold_start,
            seconds=time.monotonic() - began,
        )
    for name, figure in report.write(results, given.out).items():
        sys.stdout.write(f"{name}: {figure}\n")
    sys.stdout.write(f"The report is in {given.out / 'README.md'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
