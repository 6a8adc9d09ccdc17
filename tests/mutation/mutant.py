"""What a mutant is: one guard of the source, broken on purpose, and how that is written into a tree."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final

from attrs import frozen

LUA_FOLDER: Final = "src/atomic_actors/journal/redis/lua"
#: Holds the table of transitions.
LUA_HEADER: Final = f"{LUA_FOLDER}/00_header.lua"
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
        if self.file.startswith(LUA_FOLDER):
            return (Suite.STORE,)
        # The rules beside the table are written in Lua once more: there they have mutants of their own.
        is_of_both = self.file == TABLE and self.guard is Guard.TRANSITION
        return (Suite.STORE, Suite.MEMORY) if is_of_both else (Suite.MEMORY,)


_ROOT: Final = Path(__file__).parents[2]


@cache
def lua_part(function: str) -> str:
    """The part of the Lua library that a function stands in.

    Raises:
        DoesNotApply: it stands in none, or in several.
    """
    found = [
        f"{LUA_FOLDER}/{path.name}"
        for path in sorted((_ROOT / LUA_FOLDER).glob("*.lua"))
        if any(line.lstrip().startswith(_heads(function)) for line in path.read_text("utf-8").splitlines())
    ]
    if len(found) != 1:
        raise DoesNotApply(f"function {function} stands in {len(found)} parts of the Lua library")
    return found[0]


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
    return Mutant(f"lua.{name}", guard, lua_part(function), function, old, new, protects, tests, equivalent)


def _heads(name: str) -> tuple[str, ...]:
    """What the first line of a function begins with, in Python or Lua."""
    return (f"def {name}(", f"async def {name}(", f"local function {name}(", f"function {name}(")


def find_function(lines: list[str], name: str) -> tuple[int, int]:
    """The first line of a Python or Lua function and the one behind its last.

    Raises:
        DoesNotApply: there is none of this name, or more than one.
    """
    starts = [number for number, line in enumerate(lines) if line.lstrip().startswith(_heads(name))]
    if len(starts) != 1:
        raise DoesNotApply(f"there are {len(starts)} functions {name}")
    start = starts[0]
    depth = len(lines[start]) - len(lines[start].lstrip())
    for number in range(start + 1, len(lines)):
        line = lines[number]
        # The closing parenthesis of a long signature stands where its function does.
        if line.strip() and len(line) - len(line.lstrip()) <= depth and not line.lstrip().startswith(")"):
            return start, number + line.lstrip().startswith("end")
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
