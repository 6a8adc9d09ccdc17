"""The results as a markdown table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import asdict

from benchmarks._run import Outcome, Spread
from benchmarks.catalog import Row, Target

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
    """The targets in words."""
    return " and ".join(_limit(some, row.unit) for some in (row.target, row.also) if some is not None)


def _limit(some: Target, unit: str) -> str:
    sign = "≥" if some.good == "at least" else "<"
    if some.of == "ratio":
        return f"{sign} {some.limit:g} × floor"
    limit = f"{some.limit:g}" if some.limit < 10 else f"{some.limit:,.0f}"
    return f"{sign} {limit} {unit}"


def verdict(outcome: Outcome) -> str:
    """Met, missed or failed."""
    if outcome.error is not None:
        return "failed"
    if outcome.met is None:
        return "–"
    return "yes" if outcome.met else "**no**"


def markdown(outcomes: Sequence[Outcome], about: dict[str, Any]) -> str:
    """The environment in a line, the table, and a list of what each row and floor is."""
    lines = [_environment_line(about), "", _line(_HEADER), _line(["---"] * len(_HEADER))]
    for outcome in outcomes:
        row = outcome.row
        floor = spread(outcome.floor_value, row.unit)
        if outcome.not_available:
            floor = "peer not available"
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
    if outcome.error is not None:
        return []
    name, place = outcome.row.name, f"- `{outcome.row.name}` on {outcome.backend}: "
    samples = outcome.samples[name]
    found = samples[0].details
    if name == "million_entities":
        return [
            f"{place}{found['operations']:,} entities in {found['elapsed_s']:,.0f} s, "
            f"{figure(found['per_second'])} per second, "
            f"{figure(found['store_bytes_per_entity'])} bytes per entity in the store."
        ]
    if name == "orders_five_workers":
        messages = Spread.of(sample.details["messages_per_second"] for sample in samples)
        why = f" The peer is not available: {outcome.not_available}." if outcome.not_available else ""
        return [
            f"{place}{spread(outcome.value)} orders and {spread(messages)} messages per second, "
            f"{found['deductions']:,} deductions a run, drift 0.{why}"
        ]
    if "values" in found:
        return [f"{place}{len(found['values'])} times."]
    return []
