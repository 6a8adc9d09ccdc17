"""`python -m benchmarks.plot results.json`: draw the rows against their targets."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

COLOURS = {"asyncio": "#3b6ea5", "trio": "#c8553d", "uvloop": "#5b8e55"}


def margin(outcome: dict[str, Any]) -> float:
    """How far the figure is on the good side of its target: 1 is just met, 2 twice as good."""
    target = outcome["row"]["target"]
    ratio: float = outcome["figure"] / target["limit"]
    return ratio if target["good"] == "at least" else 1 / ratio


def label(outcome: dict[str, Any]) -> str:
    """The figure itself, and the target."""
    row, target = outcome["row"], outcome["row"]["target"]
    sign = "≥" if target["good"] == "at least" else "<"
    value = (
        f"{outcome['value']['median']:,.3g}" if row["unit"] == "ms" else f"{outcome['value']['median']:,.0f}"
    )
    if target["of"] == "ratio":
        times = f"{outcome['figure']:.2f} × floor (target {sign} {target['limit']:g} ×)"
        return f"{value} {row['unit']}; {times}"
    return f"{value} {row['unit']} (target {sign} {target['limit']:,.0f})"


def draw(results: dict[str, Any], files: Sequence[Path]) -> None:
    """One bar per row and backend; the line at 1 is the target."""
    outcomes = [outcome for outcome in results["rows"] if outcome["figure"] is not None]
    if not outcomes:
        raise SystemExit("no row in this file was measured")
    figure, axes = pyplot.subplots(figsize=(10, 1.2 + 0.42 * len(outcomes)))
    for place, outcome in enumerate(outcomes):
        axes.barh(place, margin(outcome), height=0.7, color=COLOURS[outcome["backend"]])
        axes.annotate(
            label(outcome),
            (0, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )
    names = [f"{outcome['row']['name']}, {outcome['backend']}" for outcome in outcomes]
    axes.set_yticks(range(len(outcomes)), names, fontsize=9)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=1, linestyle="--")
    axes.set_xlim(0, max(1.5, *(margin(outcome) * 1.1 for outcome in outcomes)))
    axes.set_xlabel("times better than the target (dashed line: target)")
    about = results["environment"]
    axes.set_title(
        f"{about['store']}, AOF everysec; Python {about['python']}; {about['cpus']} CPUs", fontsize=9
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    for file in files:
        # No date inside, so that the same results give the same file.
        figure.savefig(file, dpi=144, metadata={"Date": None} if file.suffix == ".svg" else None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the JSON that `python -m benchmarks --json` wrote; write SVG and PNG."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("results", type=Path)
    default = [Path("docs/performance.svg"), Path("docs/performance.png")]
    parser.add_argument(
        "--output", type=Path, nargs="+", default=default, metavar="FILE", help=".svg or .png"
    )
    parsed = parser.parse_args(arguments)
    # Fixed, or every drawing would name its parts anew.
    matplotlib.rcParams["svg.hashsalt"] = "atomic_actors"
    for file in parsed.output:
        file.parent.mkdir(parents=True, exist_ok=True)
    draw(json.loads(parsed.results.read_text()), parsed.output)


if __name__ == "__main__":
    main()
