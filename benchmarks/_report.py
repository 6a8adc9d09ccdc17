"""The results as a markdown table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import asdict

from benchmarks._run import Outcome, Spread
from benchmarks.catalog import Row

_HEADER = ("row", "backend", "measured", "floor", "ratio", "target", "met")


def figure(value: float) -> str:
    """Three significant digits, thousands separated."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(some: Spread | None, unit: str = "") -> str:
    """Median (low to high)."""
    if some is None:
        return "–"
    suffix = f" {unit}" if unit else ""
    return f"{figure(some.median)} ({figure(some.low)}–{figure(some.high)}){suffix}"


def target(row: Row) -> str:
    """The target in words."""
    sign = "≥" if row.target.good == "at least" else "<"
    if row.target.of == "ratio":
        return f"{sign} {row.target.limit:g} × floor"
    return f"{sign} {row.target.limit:,.0f} {row.unit}"


def verdict(outcome: Outcome) -> str:
    """Met, missed or failed."""
    if outcome.error is not None:
        return "failed"
    return "yes" if outcome.met else "**no**"


def markdown(outcomes: Sequence[Outcome], about: dict[str, Any]) -> str:
    """The environment in a line, the table, and a list of what each row and floor is."""
    lines = [_environment_line(about), "", _line(_HEADER), _line(["---"] * len(_HEADER))]
    for outcome in outcomes:
        row = outcome.row
        floor = spread(outcome.floor_value, row.unit)
        if len(row.floors) > 1 and outcome.floor:
            floor += f", {outcome.floor}"
        cells = (row.name, outcome.backend, spread(outcome.value, row.unit), floor, spread(outcome.ratio))
        lines.append(_line((*cells, target(row), verdict(outcome))))
    lines.append("")
    for row in dict.fromkeys(outcome.row for outcome in outcomes):
        lines.append(f"- `{row.name}`: {row.title}. Floor: {row.floor_title}.")
    details = [line for outcome in outcomes for line in _details(outcome)]
    return "\n".join([*lines, *details]) + "\n"


def as_json(outcomes: Sequence[Outcome], about: dict[str, Any]) -> dict[str, Any]:
    """Everything, each sample included."""
    rows = [{**asdict(outcome), "figure": outcome.figure, "met": outcome.met} for outcome in outcomes]
    return {"environment": about, "rows": rows}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _environment_line(about: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    speeds = " and ".join(figure(speed) for speed in about["speeds"])
    text = (
        f"{about['date']}; Python {about['python']}, {about['platform']}, {about['cpus']} CPUs; "
        f"{about['store']} over TCP, AOF everysec; {packages}. Medians of {about['repeats']} "
        f"(smallest–largest), each sample a new process, {about['window_s']:g} s measured. Machine speed "
        f"before and after: {speeds} million additions a second in plain Python."
    )
    return "**Quick check; the figures mean little.** " + text if about["quick"] else text


def _details(outcome: Outcome) -> list[str]:
    """What a row reports besides its figure, where that is asked for."""
    if outcome.row.name != "million_entities" or outcome.error is not None:
        return []
    found = outcome.samples[outcome.row.name][0].details
    return [
        f"- `million_entities` on {outcome.backend}: {found['operations']:,} entities in "
        f"{found['elapsed_s']:,.0f} s, {figure(found['per_second'])} per second, "
        f"{figure(found['store_bytes_per_entity'])} bytes per entity in the store."
    ]
