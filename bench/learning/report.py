"""The report: Markdown with tables and plots, and the figures as JSON."""

# ruff: noqa: E501  # prose and tables

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from scipy import stats

from bench.learning.simulation import CHECKPOINTS, SKIPPED_OUTCOMES, Draws, Judged, Played, Speed
from upright.services.learning.calibration import brier, calibration_error, reliability

mpl.use("agg")
from matplotlib import pyplot as plt  # after the backend is chosen

FIXED, PRIOR, GREEDY, LEARNED = "fixed order", "prior p/cost", "beta, greedy", "learned"
POLICIES = (FIXED, PRIOR, GREEDY, LEARNED)


@dataclass
class Results:
    guide: list[Played]
    """The guide's runbooks."""
    chosen: list[Played]
    """Three strategies of ten, chosen anew for each incident."""
    judged: dict[int, list[Judged]]
    """Length of the log to verdicts."""
    draws: Draws
    speed: Speed
    cold_start: float
    seconds: float


@dataclass(frozen=True)
class Difference:
    """Of paired values over worlds, with its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Difference:
        found = np.array(ours) - np.array(theirs)
        mean = float(found.mean())
        spread = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
        return cls(mean, mean - spread, mean + spread)

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def regret(worlds: Sequence[Played], policy: str, checkpoint: int) -> list[float]:
    return [one.regret[policy][CHECKPOINTS.index(checkpoint)] for one in worlds]


def figures(results: Results) -> dict[str, object]:
    ours, fixed, prior = (regret(results.guide, one, 1000) for one in (LEARNED, FIXED, PRIOR))
    against_prior, against_fixed = Difference.of(ours, prior), Difference.of(ours, fixed)
    errors = [calibration_error(one.predicted, one.outcomes) for one in results.guide if len(one.predicted) >= 500]
    speed = results.speed
    return {
        "regret_1000": {
            "value": round(float(np.mean(ours)), 4),
            "unit": "s an incident, simulated",
            "peer": {FIXED: round(float(np.mean(fixed)), 4), PRIOR: round(float(np.mean(prior)), 4)},
            "interval": {
                f"minus {PRIOR}": [round(against_prior.low, 4), round(against_prior.high, 4)],
                f"minus {FIXED}": [round(against_fixed.low, 4), round(against_fixed.high, 4)],
            },
            "target": "no worse than prior p/cost; at least 50 % below the fixed order",
        },
        "forbidden_explorations": {
            "value": results.draws.forbidden,
            "unit": f"in {results.draws.count:,} draws",
            "target": "0",
        },
        "ece": {
            "value": round(float(np.mean(errors)), 4),
            "unit": f"mean of {len(errors)} simulated worlds, 500 outcomes or more each",
            "worst": round(max(errors), 4),
            "target": "at most 0.05",
        },
        "scoring_p99_ms": {
            "value": round(speed.p99_ms, 3),
            "unit": "ms, ten strategies, with a challenger",
            "p50": round(speed.p50_ms, 3),
            "cpu_p99": round(speed.cpu_p99_ms, 3),
            "noise": round(speed.worst_p99_ms - speed.p99_ms, 3),
            "target": "under 5",
        },
    }


def write(results: Results, directory: Path) -> dict[str, object]:
    directory.mkdir(parents=True, exist_ok=True)
    found = figures(results)
    (directory / "latest.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    _plot_regret(results, directory / "regret.png")
    _plot_reliability(results.guide, directory / "reliability.png")
    _plot_gate(results.judged, directory / "gate.png")
    (directory / "README.md").write_text(_markdown(results))
    return found


def _markdown(results: Results) -> str:
    guide, chosen = results.guide, results.chosen
    lines = [
        "# How well scoring learns",
        "",
        "Made by `make learn`. **All of this is simulation**: no public data set holds the outcomes of recoveries, so the",
        "worlds are invented, and what they say of policies is true of them. What a world is, is in",
        "`bench/learning/worlds.py`: true success rates stray from the guide's by error type, service and situation, by",
        "little, by as much, or by half as much again in a third of the worlds each. In a third of them, failures of one",
        "incident hang together, which every policy assumes not; in another third the effects change midway.",
        "",
        f"{len(guide)} worlds with the guide's runbooks, {len(chosen)} with three of the ten strategies for each",
        f"incident; seeded; {results.seconds / 60:.0f} minutes on {platform.machine()}, Python"
        f" {platform.python_version()}.",
        "",
        "Regret: expected seconds to recovery above an oracle that knows the true rates, an incident, mean over all",
        "incidents so far. Escalation to a person counts as 120 s. Differences are paired by world, with 95 % intervals.",
        "",
        "![Regret](regret.png)",
        "",
    ]
    for title, worlds in (("The guide's runbooks", guide), ("Three strategies of ten", chosen)):
        lines += [f"## Regret: {title}", "", "| after | " + " | ".join(POLICIES) + " |", "|---" * 5 + "|"]
        for checkpoint in CHECKPOINTS:
            means = [f"{np.mean(regret(worlds, one, checkpoint)):.3f}" for one in POLICIES]
            lines.append(f"| {checkpoint:,} | " + " | ".join(means) + " |")
        lines += ["", "| learned minus | after 200 | after 1,000 | after 5,000 |", "|---|---|---|---|"]
        for peer in (FIXED, PRIOR, GREEDY):
            cells = [str(Difference.of(regret(worlds, LEARNED, one), regret(worlds, peer, one))) for one in CHECKPOINTS]
            lines.append(f"| {peer} | " + " | ".join(cells) + " |")
        better = sum(a < b for a, b in zip(regret(worlds, LEARNED, 1000), regret(worlds, PRIOR, 1000), strict=True))
        lines += ["", f"After 1,000 incidents it beats {PRIOR} in {better} of {len(worlds)} worlds.", ""]
        lines += _by_kind(worlds)
    lines += [
        "*Learned* is what the service does: Beta, exploration, the expected-value stop, and with the guide's runbooks a",
        f"challenger trained every 1,000 incidents, which acted in {sum(one.promotions > 0 for one in guide)} of"
        f" {len(guide)} worlds and was withdrawn for drift",
        f"in {sum(one.fallbacks > 0 for one in guide)}. Exploration costs what the difference to *beta, greedy* shows; it",
        "pays by what the gate can know.",
        "",
        f"Cold start: with nothing learned the order is that of {PRIOR} in {results.cold_start:.0%} of incidents.",
        "",
        "## Calibration",
        "",
        f"Of what was predicted when it was scored, without the first {SKIPPED_OUTCOMES} outcomes of a world.",
        "",
        "| worlds | outcomes | Brier score | calibration error, mean | worst |",
        "|---|---|---|---|---|",
        *(_calibration(title, worlds) for title, worlds in (("guide's runbooks", guide), ("three of ten", chosen))),
        "",
        "![Reliability](reliability.png)",
        "",
        *_gate(results.judged),
        "## Exploration",
        "",
        f"{results.draws.count:,} draws over random contexts and estimates: {results.draws.explored:,} explored"
        f" ({results.draws.share_where_allowed:.1%} of those where",
        f"it is allowed), {results.draws.forbidden} of them forbidden.",
        "",
        "## Speed",
        "",
        f"Scoring ten strategies with a challenger, preconditions included: p50 {results.speed.p50_ms:.2f} ms, p99",
        f"{results.speed.p99_ms:.2f} ms in the median of nine rounds, {results.speed.worst_p99_ms:.2f} ms in the worst; {results.speed.cpu_p99_ms:.2f} ms of it computing (p99).",
        "",
    ]
    return "\n".join(lines)


def _by_kind(worlds: Sequence[Played]) -> list[str]:
    kinds = {
        "independent attempts": [one for one in worlds if not one.changes and not one.hidden_cause],
        "a hidden cause": [one for one in worlds if one.hidden_cause],
        "effects change midway, last 1,000": [one for one in worlds if one.changes],
    }
    lines = ["| worlds with | " + " | ".join(POLICIES) + f" | learned minus {PRIOR} |", "|---" * 6 + "|"]
    for name, some in kinds.items():
        if len(some) < 2:
            continue

        def of(policy: str, some: list[Played] = some, late: bool = some[0].changes) -> list[float]:
            return [one.after_change[policy] for one in some] if late else regret(some, policy, 5000)

        means = " | ".join(f"{np.mean(of(one)):.3f}" for one in POLICIES)
        lines.append(f"| {name} | {means} | {Difference.of(of(LEARNED), of(PRIOR))} |")
    return [*lines, ""]


def _calibration(title: str, worlds: Sequence[Played]) -> str:
    errors = [calibration_error(one.predicted, one.outcomes) for one in worlds if len(one.predicted) >= 500]
    predicted = [p for one in worlds for p in one.predicted]
    outcomes = [y for one in worlds for y in one.outcomes]
    return f"| {title} | {len(outcomes):,} | {brier(predicted, outcomes):.3f} | {np.mean(errors):.3f} | {max(errors):.3f} |"


def _gate(judged: dict[int, list[Judged]]) -> list[str]:
    lines = [
        "## The gate",
        "",
        "Three candidates in each world: the challenger as trained, one whose log odds are shifted at random by up to 2,",
        "and one that believes the opposite. What each really saves is counted on 1,000 fresh incidents. A false",
        "promotion passes although it takes more than 2 % more time; a miss is refused although it saves more than 2 %.",
        "",
        "| incidents in the log | candidates | promoted | false promotions | of really worse | misses | of really better |",
        "|---|---|---|---|---|---|---|",
    ]
    for length, some in judged.items():
        worse = [one for one in some if one.saved < -0.02]
        better = [one for one in some if one.saved > 0.02]
        false, missed = sum(one.passed for one in worse), sum(not one.passed for one in better)
        lines.append(
            f"| {length:,} | {len(some)} | {sum(one.passed for one in some)} | {false} | {len(worse)} | {missed} |"
            f" {len(better)} |"
        )
    trained = [one for some in judged.values() for one in some if one.kind == "trained"]
    lines += [
        "",
        "![The gate](gate.png)",
        "",
        "It is built to refuse in doubt: with exploration at 5 % of few incidents, a log says little of a challenger that",
        "disagrees seldom, and the Beta model that stays is good by itself.",
        "",
        f"The challenger as trained would have saved {max(one.saved for one in trained):.2%} at best, and"
        f" {np.mean([one.saved for one in trained]):.2%} on average:",
        "in these worlds it hardly earns its place, and what the gate lets through does no harm.",
        "",
    ]
    return lines


def _plot_regret(results: Results, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, title, worlds in zip(
        axes, ("The guide's runbooks", "Three strategies of ten"), (results.guide, results.chosen), strict=True
    ):
        for policy in POLICIES[1:]:
            values = np.array([regret(worlds, policy, one) for one in CHECKPOINTS])
            error = 1.96 * values.std(axis=1, ddof=1) / math.sqrt(values.shape[1])
            axis.errorbar(CHECKPOINTS, values.mean(axis=1), yerr=error, marker="o", capsize=3, label=policy)
        axis.set(xscale="log", title=title, xlabel="incidents", ylabel="regret, s an incident", ylim=(0, None))
        axis.set_xticks(CHECKPOINTS, [f"{one:,}" for one in CHECKPOINTS])
        axis.minorticks_off()
        axis.legend()
    _save(figure, path)


def _plot_reliability(worlds: Sequence[Played], path: Path) -> None:
    predicted = [p for one in worlds for p in one.predicted]
    outcomes = [y for one in worlds for y in one.outcomes]
    bins = reliability(predicted, outcomes)
    figure, axis = plt.subplots(figsize=(5, 5))
    axis.plot([0, 1], [0, 1], linestyle="--", color="grey")
    axis.plot([one.predicted for one in bins], [one.observed for one in bins], marker="o")
    for one in bins:
        axis.annotate(
            f"{one.count:,}", (one.predicted, one.observed), fontsize=7, xytext=(4, -9), textcoords="offset points"
        )
    axis.set(title="Reliability (simulated)", xlabel="expected", ylabel="happened", xlim=(0, 1), ylim=(0, 1))
    _save(figure, path)


def _plot_gate(judged: dict[int, list[Judged]], path: Path) -> None:
    figure, axes = plt.subplots(1, len(judged), figsize=(5 * len(judged), 4), squeeze=False)
    for axis, (length, some) in zip(axes[0], judged.items(), strict=True):
        for passed, marker in ((True, "o"), (False, "x")):
            chosen = [one for one in some if one.passed is passed]
            label = "promoted" if passed else "refused"
            axis.scatter(
                [100 * one.saved for one in chosen], [100 * one.lower for one in chosen], marker=marker, label=label
            )
        axis.axhline(-2, color="grey", linewidth=0.8)
        axis.axvline(-2, color="grey", linewidth=0.8)
        axis.set(title=f"{length:,} incidents", xlabel="really saves, %", ylabel="lower bound, %")
        axis.legend()
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)
