"""The report of a run, as a page of the docs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.mutation.mutant import Guard
from tests.mutation.run import Outcome, Verdict

INTRODUCTION = """\
# Mutants

Each guard of the store's Lua library, of the transition table and of the in-memory journal was broken on purpose, one
at a time, and the tests that should notice were run. A mutant of the table breaks the table in Python and the one in
Lua that is generated from it, and each of the two journals has to notice on its own.

`python -m tests.mutation --report docs/mutants.md` writes this page.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _remarks(outcome: Outcome) -> list[str]:
    remarks = [] if outcome.stage in ("", "likely", "conformance") else [outcome.stage]
    return [*remarks, "waited in vain"] if outcome.hung else remarks


def _row(outcome: Outcome) -> str:
    mutant = outcome.mutant
    test = outcome.test.rpartition("::")[2] if outcome.stage else ""
    cells = [
        f"`{mutant.name}`",
        outcome.suite.name.lower(),
        mutant.protects,
        str(outcome.verdict),
        f"`{test}`" if test else "",
        ", ".join(_remarks(outcome)),
    ]
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _section(guard: Guard, outcomes: Sequence[Outcome]) -> list[str]:
    rows = [_row(outcome) for outcome in outcomes if outcome.mutant.guard is guard]
    head = ["| mutant | journal | what the guard is for | | noticed by | |", "|---|---|---|---|---|---|"]
    return ["", f"## {guard.value.capitalize()}", "", *head, *rows] if rows else []


def _equivalents(outcomes: Sequence[Outcome]) -> list[str]:
    found = [outcome for outcome in outcomes if outcome.verdict is Verdict.EQUIVALENT]
    if not found:
        return []
    lines = [f"- `{outcome.mutant.name}`: {outcome.mutant.equivalent}" for outcome in found]
    return ["", "## Guards that nothing can notice", "", "They are belt and braces:", "", *lines]


def _problems(outcomes: Sequence[Outcome]) -> list[str]:
    found = [outcome for outcome in outcomes if not outcome.is_fine]
    if not found:
        return []
    lines = [
        f"- `{outcome.mutant.name}` ({outcome.suite.name.lower()}): {outcome.verdict}" for outcome in found
    ]
    return ["", "## To be looked at", "", *lines]


def summary(outcomes: Sequence[Outcome], took_s: float) -> str:
    """How many there were of each verdict, in one sentence."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    mutants = len({outcome.mutant.name for outcome in outcomes})
    return f"{mutants} mutants, {len(outcomes)} runs in {took_s / 60:.0f} min: {parts}."


def write_report(outcomes: Sequence[Outcome], took_s: float) -> str:
    """The page."""
    lines = [INTRODUCTION.rstrip(), "", summary(outcomes, took_s), *_problems(outcomes)]
    lines += _equivalents(outcomes)
    for guard in Guard:
        lines += _section(guard, outcomes)
    return "\n".join(lines) + "\n"
