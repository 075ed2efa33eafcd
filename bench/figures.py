"""A figure with its peer and the noise it was measured in, and the statistics they are made with."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One measured value.

    `peer` is what the same run measured of the thing it is compared with; `noise` the difference between two
    measurements of the same thing. Both in `unit`, None where there is none.
    """

    value: float
    unit: str
    peer: float | None = None
    noise: float | None = None
    peer_name: str = ""
    target: str = ""


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(percent / 100 * len(ordered) + 0.5) - 1))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def machine() -> str:
    """The machine, in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            model = f"{len(names)} × {names[0]}"
    return f"{model}, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def write(figures: dict[str, Figure], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: asdict(figure) for name, figure in figures.items()}
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


def table(figures: dict[str, Figure]) -> str:
    """The figures as a Markdown table."""

    def number(value: float | None) -> str:
        return (
            "–" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}".rstrip("0").rstrip(".")
        )

    lines = ["| figure | value | target | peer | noise |", "|---|---|---|---|---|"]
    for name, figure in figures.items():
        peer = f"{number(figure.peer)} ({figure.peer_name})" if figure.peer is not None else "–"
        lines.append(
            f"| {name} | {number(figure.value)} {figure.unit} | {figure.target} | {peer} | {number(figure.noise)} |"
        )
    return "\n".join(lines)
