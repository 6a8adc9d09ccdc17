"""What a mutant is: one guard of the source, broken on purpose, and how that is written into a tree."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final

from attrs import frozen

LUA: Final = "src/atomic_actors/journal/atomic_actors.lua"
TABLE: Final = "src/atomic_actors/base/_lifecycle.py"
MEMORY: Final = "src/atomic_actors/journal/memory/_journal.py"
TURNS: Final = "src/atomic_actors/journal/memory/_turns.py"
BOOKS: Final = "src/atomic_actors/journal/memory/_counters.py"


class Guard(StrEnum):
    """What kind of promise a guard keeps. There has to be a mutant of every kind."""

    CLAIM = "claim"
    TURN = "turn"
    VERSION = "state version"
    DEDUPE_ID = "dedupe by id"
    DEDUPE_KEY = "dedupe by key"
    STREAM = "stream numbers"
    AGE = "age of an id"
    DEPTH = "depth"
    DEADLINE = "deadline"
    INTERRUPTION = "interruption"
    RELEASE = "release"
    EXPECTED = "expected claim"
    EPOCH = "epoch"
    ALONE = "alone after an attempt"
    RUN = "run limit"
    NOT_BEFORE = "not-before"
    PARKED = "parked"
    WITHDRAW = "withdraw"
    ROOM = "dead-letter room"
    REPLAY = "replay once"
    TIME = "monotone time"
    INCARNATION = "incarnation"
    TRANSITION = "transition"


class Suite(StrEnum):
    """Which journal is put to the test. The values are the conformance suite over it."""

    STORE = "tests/conformance/test_redis_journals.py::TestOverValkey"
    MEMORY = "tests/conformance/test_journals.py::TestMemoryJournal"


class DoesNotApply(Exception):
    """The text that a mutant replaces does not stand exactly once where it should."""


@frozen
class Mutant:
    """A guard, broken.

    Args:
        name: what it is called.
        guard: the kind of promise.
        file: the source file, from the root of the tree.
        function: the function that the text stands in; "" for anywhere in the file.
        old: the source text, which must stand there exactly once.
        new: what it is replaced by.
        protects: what the guard is for.
        tests: what is most likely to notice: tests of the conformance suite by name, others by their file and
            name (`tests/a.py::test_b`).
        equivalent: why nothing can notice it; "" where something has to.
    """

    name: str
    guard: Guard
    file: str
    function: str
    old: str
    new: str
    protects: str
    tests: tuple[str, ...]
    equivalent: str = ""

    @property
    def suites(self) -> tuple[Suite, ...]:
        """The suites that have to notice it, each on its own."""
        if self.file == LUA:
            return (Suite.STORE,)
        # The rules beside the table are written in Lua once more: there they have mutants of their own.
        is_of_both = self.file == TABLE and self.guard is Guard.TRANSITION
        return (Suite.STORE, Suite.MEMORY) if is_of_both else (Suite.MEMORY,)


def lua(
    name: str,
    guard: Guard,
    function: str,
    old: str,
    new: str,
    protects: str,
    *tests: str,
    equivalent: str = "",
) -> Mutant:
    """A mutant of the Lua library."""
    return Mutant(f"lua.{name}", guard, LUA, function, old, new, protects, tests, equivalent)


def find_function(lines: list[str], name: str) -> tuple[int, int]:
    """The first line of a Python or Lua function and the one behind its last.

    Raises:
        DoesNotApply: there is none of this name, or more than one.
    """
    heads = (f"def {name}(", f"async def {name}(", f"local function {name}(")
    starts = [number for number, line in enumerate(lines) if line.lstrip().startswith(heads)]
    if len(starts) != 1:
        raise DoesNotApply(f"there are {len(starts)} functions {name}")
    start = starts[0]
    depth = len(lines[start]) - len(lines[start].lstrip())
    for number in range(start + 1, len(lines)):
        line = lines[number]
        # The closing parenthesis of a long signature stands where its function does.
        if line.strip() and len(line) - len(line.lstrip()) <= depth and not line.lstrip().startswith(")"):
            return start, number + line.startswith("end")
    return start, len(lines)


def mutate(text: str, mutant: Mutant) -> str:
    """The source with the guard broken.

    Raises:
        DoesNotApply: the old text does not stand exactly once in the function.
    """
    lines = text.splitlines(keepends=True)
    try:
        start, stop = find_function(lines, mutant.function) if mutant.function else (0, len(lines))
    except DoesNotApply as error:
        raise DoesNotApply(f"{mutant.name}: {error} in {mutant.file}") from None
    inside = "".join(lines[start:stop])
    found = inside.count(mutant.old)
    if found != 1:
        where = f"{mutant.function} of {mutant.file}" if mutant.function else mutant.file
        raise DoesNotApply(f"{mutant.name}: {mutant.old!r} stands {found} times in {where}, not once")
    return "".join([*lines[:start], inside.replace(mutant.old, mutant.new), *lines[stop:]])


def apply(tree: Path, mutant: Mutant) -> None:
    """Break the guard in a copy of the source tree.

    Raises:
        DoesNotApply: the old text does not stand exactly once in the function.
    """
    path = tree / mutant.file
    path.write_text(mutate(path.read_text("utf-8"), mutant), "utf-8")
