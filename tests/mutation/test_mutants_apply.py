"""Every mutant still fits the source, no kind of guard is without one, and the program tells what is noticed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from attrs import evolve

from atomic_actors.testing import JournalSuite
from tests.lua_bytecode import Function, compile_lua
from tests.mutation.__main__ import describe, main
from tests.mutation.mutant import (
    LUA_FOLDER,
    DoesNotApply,
    Guard,
    Mutant,
    Suite,
    find_function,
    lua,
    lua_part,
    mutate,
)
from tests.mutation.report import write_report
from tests.mutation.run import Outcome, Verdict, try_all, unbroken_tree
from tests.mutation.stage import Selection
from tests.mutation.table import MUTANTS
from tests.mutation.trees import ROOT

LEASE = lua_part("release")
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
#: Only the words of a refusal differ.
HARMLESS = lua(
    "release.words",
    Guard.RELEASE,
    "release",
    '"settle the partition\'s turns first"',
    '"first settle the partition\'s turns"',
    "nothing",
    "test_release_waits_for_what_runs",
)


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_every_mutant_applies_once() -> None:
    for mutant in MUTANTS:
        broken = mutate(read(mutant.file), mutant)
        assert broken != read(mutant.file), mutant.name
        if mutant.file.endswith(".py"):
            compile(broken, mutant.file, "exec")


def test_lua_mutants_use_names_that_there_are() -> None:
    """A name that there is none of fails as soon as it runs, which says nothing about the guard."""
    names = sorted(f"{LUA_FOLDER}/{path.name}" for path in (ROOT / LUA_FOLDER).glob("*.lua"))
    library = compile_part("\n".join(map(read, names)))
    there = library.last_names() | globals_of(library)
    for mutant in MUTANTS:
        if mutant.file in names:
            assert globals_of(compile_part(mutate(read(mutant.file), mutant))) <= there, mutant.name


def compile_part(text: str) -> Function:
    # Only the store knows what to make of the first line.
    return compile_lua(text.replace("#!", "--", 1))


def globals_of(text: Function) -> frozenset[str]:
    return frozenset[str]().union(*(function.globals for function in text.walk()))


def test_every_kind_of_guard_has_a_mutant() -> None:
    assert {mutant.guard for mutant in MUTANTS} == set(Guard)
    # Each of them also where it counts: in the store.
    assert {mutant.guard for mutant in MUTANTS if Suite.STORE in mutant.suites} == set(Guard)


def test_names_are_different() -> None:
    assert [name for name, times in Counter(mutant.name for mutant in MUTANTS).items() if times > 1] == []


def test_few_are_said_to_be_equivalent() -> None:
    assert sum(bool(mutant.equivalent) for mutant in MUTANTS) <= 6


def test_the_tests_that_are_likely_to_notice_are_there() -> None:
    for mutant in MUTANTS:
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            path, _, name = test.rpartition("::")
            there = f"def {name}(" in read(path) if path else hasattr(JournalSuite, name)
            assert there, f"{mutant.name}: {test}"


@pytest.mark.parametrize(
    ("function", "old", "problem"),
    [
        ("release", "no such text", "stands 0 times in release"),
        ("release", "call(", "stands 3 times in release"),
        ("", "local function release(P, k, a)\n", ""),
        ("no_such_function", "call", "there are 0 functions no_such_function"),
    ],
)
def test_what_does_not_apply_is_refused(function: str, old: str, problem: str) -> None:
    mutant = Mutant("name", Guard.CLAIM, LEASE, function, old, "", "", ())
    if not problem:
        assert old not in mutate(read(LEASE), mutant)
        return
    with pytest.raises(DoesNotApply, match=problem):
        mutate(read(LEASE), mutant)


def test_a_text_is_looked_for_in_its_function_only() -> None:
    text = "def one(\n    a: int,\n) -> None:\n    stop\n\n\nclass Two:\n    def two(self):\n        stop\n\n    stop\n"
    lines = text.splitlines()
    assert [lines[slice(*find_function(lines, name))][-1] for name in ("one", "two")] == ["", ""]
    assert find_function(lines, "one")[0] == 0
    assert find_function(lines, "two") == (7, 10)


def test_a_selection_takes_whole_names() -> None:
    selection = Selection("", (str(Suite.STORE),), ("test_run",))
    assert selection.takes(f"{Suite.STORE}::test_run[asyncio-once]")
    assert not selection.takes(f"{Suite.STORE}::test_run_commits_its_prefix[asyncio-once]")
    assert not selection.takes(f"{Suite.STORE}::test_run[trio-once]")
    assert not selection.takes(f"{Suite.MEMORY}::test_run[asyncio-once]")


def test_the_report_names_what_is_to_be_looked_at() -> None:
    mutant = MUTANTS[0]
    outcomes = [
        Outcome(mutant, Suite.STORE, "likely", "tests/a.py::test_b[x|y]", 1.0),
        Outcome(mutant, Suite.MEMORY, "", "", 1.0),
        Outcome(evolve(mutant, equivalent="because"), Suite.MEMORY, "", "", 1.0),
        Outcome(evolve(mutant, equivalent="because"), Suite.MEMORY, "wire", "tests/a.py::test_c", 1.0),
        Outcome(mutant, Suite.MEMORY, "", "", 0.0, problem="no reason"),
    ]
    assert [outcome.verdict for outcome in outcomes] == list(Verdict)
    assert [outcome.is_fine for outcome in outcomes] == [True, False, True, False, False]
    page = write_report(outcomes, 90.0)
    assert "| noticed | `test_b[x\\|y]` |" in page
    assert f"- `{mutant.name}` (memory): survived\n" in page
    assert f"- `{mutant.name}`: because\n" in page


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--only", "lua.release."]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert "lua.release.dispatches" in names
    assert all(name.startswith("lua.release.") for name in names)
    with pytest.raises(SystemExit):
        main(["--list", "--only", "nobody"])


@pytest.mark.redis
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mutants_are_noticed() -> None:
    mutants = [BY_NAME["lua.release.dispatches"], HARMLESS, BY_NAME["table.without_fail"]]
    before = read(LEASE)
    shown: list[str] = []

    def say(outcome: Outcome | str) -> None:
        shown.append(outcome if isinstance(outcome, str) else describe(outcome))

    with unbroken_tree() as source:
        outcomes = try_all(source, mutants, jobs=1, wide=False, say=say)
    assert [(outcome.suite, outcome.verdict) for outcome in outcomes] == [
        (Suite.STORE, Verdict.NOTICED),
        (Suite.STORE, Verdict.SURVIVED),
        (Suite.STORE, Verdict.NOTICED),
        (Suite.MEMORY, Verdict.NOTICED),
    ], shown
    assert "test_release_waits_for_what_runs" in outcomes[0].test
    assert len(shown) == 4
    assert read(LEASE) == before
    assert not Path(source).exists()
