"""`python -m bench`: measure everything, print the table, write bench/results/latest.json."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench import error_path, healthy, recovery, storm
from bench.figures import Figure, machine, table, write
from bench.stack import running, socket_directory
from upright.adapters.engines import EmbeddedPostgres

PARTS = ("healthy", "error_path", "recovery", "storm")
RESULTS = Path(__file__).parent / "results" / "latest.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these of: {', '.join(PARTS)}")
    wanted = set(parser.parse_args().parts or PARTS)
    if unknown := wanted - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    began = time.monotonic()
    figures: dict[str, Figure] = {}
    if "healthy" in wanted:
        figures |= healthy.measure()
    if "error_path" in wanted:
        with tempfile.TemporaryDirectory() as directory, EmbeddedPostgres(Path(directory)) as postgres:
            postgres.ensure_database("bench")
            figures |= error_path.measure(socket_directory(postgres), "bench")
    if wanted & {"recovery", "storm"}:
        with running() as stack:
            if "recovery" in wanted:
                figures |= recovery.measure(stack)
            if "storm" in wanted:
                figures |= storm.measure(stack)
    print(f"\n{machine()}; {time.monotonic() - began:.0f} s\n\n{table(figures)}")
    if wanted == set(PARTS):
        write(figures, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
