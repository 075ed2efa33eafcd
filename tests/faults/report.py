"""What came of all faults: numbers, a report in Markdown, and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SLOW = ("retry", "resource_scale", "service_restart")
"""Their own delays are what they take."""


def summary(rows: Sequence[dict[str, Any]], *, seconds: float) -> dict[str, Any]:
    repaired = [one for one in rows if one["repairable"] and one["repaired"] and one["repair_ms"] is not None]
    times = sorted(one["repair_ms"] for one in repaired)
    fast = sorted(one["repair_ms"] for one in repaired if one["actual"]["strategy"] not in SLOW)
    return {
        "faults": len(rows),
        "repairable": sum(one["repairable"] for one in rows),
        "repaired": len(repaired),
        "wrong_verdicts": sum(one["wrong_verdict"] for one in rows),
        "side_effects_left": sum(len(one["side_effects_left"]) for one in rows),
        "unproven": sum(bool(one["problems"]) for one in rows),
        "repair_p50_ms": _quantile(times, 0.5),
        "repair_p95_ms": _quantile(times, 0.95),
        "fast_repair_p50_ms": _quantile(fast, 0.5),
        "seconds": round(seconds),
        "list": list(rows),
    }


def merged(rows: Sequence[dict[str, Any]], place: Path, seconds: float) -> dict[str, Any]:
    """A run of some faults takes their places in the latest one, and is named as such."""
    kept = json.loads((place / "latest.json").read_text())
    newer = {one["name"]: {**one, "run_again": True} for one in rows}
    return summary([newer.get(one["name"], one) for one in kept["list"]], seconds=kept["seconds"] + seconds)


def publish(found: dict[str, Any], place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    (place / "latest.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (place / "README.md").write_text(markdown(found))
    picture(found, place / "faults.png")


def markdown(found: dict[str, Any]) -> str:
    lines = [
        "# Faults: the latest run",
        "",
        f"{found['repaired']} of {found['repairable']} repairable faults were repaired without a person, out of"
        f" {found['faults']} faults. Wrong verdicts: {found['wrong_verdicts']}. Side effects left:"
        f" {found['side_effects_left']}. Not proven, since the control did not fail as it should:"
        f" {found['unproven']}.",
        "",
        f"Time to a verified repair: p50 {found['repair_p50_ms']} ms, p95 {found['repair_p95_ms']} ms; without retry,"
        f" scaling and restarts, whose own delays count, p50 {found['fast_repair_p50_ms']} ms.",
        "",
        "![Time to a verified repair, by fault](faults.png)",
        "",
        "| fault | type | expected | said | by | ms |",
        "|---|---|---|---|---|---|",
    ]
    for one in found["list"]:
        expected = one["expected"]["strategy"] or one["expected"]["verdict"].replace("_", " ")
        said = one["actual"]["verdict"].replace("_", " ")
        marks = [
            *(["**wrong**"] if one["wrong_verdict"] else []),
            *(["left behind"] if one["side_effects_left"] else []),
            *(["unproven"] if one["problems"] else []),
        ]
        cells = (
            one["name"], one["type"], expected, ", ".join([said, *marks]), one["actual"]["strategy"] or "",
            "" if one["repair_ms"] is None else str(one["repair_ms"]),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    again = [one["name"] for one in found["list"] if one.get("run_again")]
    if again:
        lines += ["", f"Run again by themselves after the others: {', '.join(again)}."]
    missed = [one for one in found["list"] if not _expected(one)]
    if missed:
        lines += ["", "## Not as expected", ""]
        for one in missed:
            why = "; ".join([*one["problems"], *one["side_effects_left"], one["reason"]]).replace("|", "/")
            lines.append(f"- **{one['name']}**: {why}")
    return "\n".join(lines) + "\n"


def picture(found: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = [one for one in found["list"] if one["repairable"]][::-1]
    figure, axes = plt.subplots(figsize=(9, 0.24 * len(shown) + 1.2))
    strategies = sorted({one["expected"]["strategy"] for one in shown})
    colours = dict(zip(strategies, plt.get_cmap("tab10").colors, strict=False))
    for at, one in enumerate(shown):
        if one["repaired"] and one["repair_ms"] is not None:
            axes.barh(at, one["repair_ms"] / 1000, color=colours[one["expected"]["strategy"]])
        else:
            axes.text(0.012, at, "not repaired", va="center", fontsize=7, color="crimson")
    axes.set_yticks(range(len(shown)), [one["name"] for one in shown], fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(0.01, 60)
    axes.set_xlabel("seconds to a verified repair")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[one]) for one in strategies]
    axes.legend(handles, strategies, fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _expected(one: dict[str, Any]) -> bool:
    verdict = one["actual"]["verdict"] in one["expected"]["verdict"].split(" or ")
    strategy = not one["repairable"] or one["actual"]["strategy"] == one["expected"]["strategy"]
    return verdict and strategy and not one["wrong_verdict"] and not one["side_effects_left"] and not one["problems"]


def _quantile(times: Sequence[float], share: float) -> int | None:
    if not times:
        return None
    return round(times[min(len(times) - 1, math.ceil(share * len(times)) - 1)])
