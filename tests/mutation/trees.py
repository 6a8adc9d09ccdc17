"""Copies of the source tree, and the test runs in them."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from tests.mutation.mutant import TABLE, Mutant, apply

ROOT: Final = Path(__file__).parents[2]
#: What a tree needs to be tested and to have its generated files written again.
PARTS: Final = ("src", "tests", "docs", "pyproject.toml")
#: Of one test; a mutant may make it wait for what never comes.
TEST_TIMEOUT_S: Final = 20
#: Of one pytest: the slowest takes a tenth of that on an idle machine.
RUN_TIMEOUT_S: Final = 600.0
STOP_TIMEOUT_S: Final = 60.0

#: The exit code of a process whose tests saw another tree than the one that they were to see.
WRONG_TREE: Final = 99
#: Importing these takes longer than most mutants live, so processes are forked from one that has them.
WARM_MODULES: Final = (
    *("anyio", "anyio._backends._asyncio", "attrs", "coredis", "hypothesis", "msgspec", "pytest", "redis"),
    *("trio", "xxhash"),
)

_WARM = multiprocessing.get_context("forkserver")
_WARM.set_forkserver_preload(list(WARM_MODULES))

_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - (.*))?$", re.MULTILINE)
#: What is said of a program that cannot run at all: that would show nothing of the guard.
_BROKEN = re.compile(
    r"Error (?:compiling|registering) function|attempt to (?:index|call|compare|concatenate|perform)"
    r"|SyntaxError|ImportError|NameError|AttributeError"
)


class CannotTell(Exception):
    """A test run ended in a way that says nothing about the guard."""


@frozen
class TestRun:
    """How a run of some tests ended.

    Args:
        failed: the test that failed; "" if all passed.
        reason: what it said, one line.
        ran: whether there was any test to run.
        took_s: how long it took.
    """

    __test__ = False

    failed: str
    reason: str
    ran: bool
    took_s: float


def copy_tree(source: Path, tree: Path) -> None:
    """Copy what the tests need. Compiled files come along, so that a copy starts as fast as its source."""
    tree.mkdir(parents=True)
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, tree / part, ignore=shutil.ignore_patterns("peers", ".hypothesis"))
        else:
            shutil.copy2(source / part, tree / part)


def call_python(tree: Path, *arguments: str) -> str:
    """Run Python in a tree; returns what it printed.

    Raises:
        CannotTell: it failed.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tree / "src"), str(tree)))},
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise CannotTell(f"python {' '.join(arguments)}: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


def make_mutated_tree(source: Path, tree: Path, mutant: Mutant) -> None:
    """Copy a tree and break one guard in the copy. Where it is of the table, Lua's copy is generated again.

    Raises:
        DoesNotApply: the old text does not stand exactly once in the function.
        CannotTell: the generator failed.
    """
    copy_tree(source, tree)
    apply(tree, mutant)
    if mutant.file.endswith(".py"):
        path = tree / mutant.file
        compile(path.read_text("utf-8"), mutant.file, "exec")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()
    if mutant.file == TABLE:
        call_python(tree, "-m", "atomic_actors.codegen", "--root", str(tree))


def _run_pytest(tree: str, command: list[str], output: str) -> None:
    """The life of a process that was forked from a warm one: pytest in a tree, its words in a file."""
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "atomic_actors")]:
        del sys.modules[name]
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    # Compiled once in the unbroken tree, and copied with it.
    sys.dont_write_bytecode = False
    os.chdir(tree)
    others = {str(ROOT), str(ROOT / "src"), ""}
    sys.path[:] = [f"{tree}/src", tree, *(path for path in sys.path if path not in others)]
    importlib.invalidate_caches()
    pytest = importlib.import_module("pytest")
    code = int(pytest.main(command))
    imported = str(sys.modules["atomic_actors"].__file__)
    if not Path(imported).is_relative_to(tree):
        print(f"the tests imported {imported}")
        code = WRONG_TREE
    sys.stdout.flush()
    # Nothing of this process is worth an orderly end, and a mutant may have left a thread behind.
    os._exit(code)


def run_tests(tree: Path, targets: Sequence[str], expression: str) -> TestRun:
    """Run tests in a tree until the first one fails.

    Args:
        tree: the tree.
        targets: files, classes or tests.
        expression: what `-k` is given.

    Raises:
        CannotTell: pytest did not come as far as a test, or a test said that the mutant is no program.
    """
    command = ["-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", f"--timeout={TEST_TIMEOUT_S}"]
    # What a warm process has imported already.
    command += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    command += ["--tb=short", "-k", expression, *targets]
    words = tree.with_suffix(".txt")
    began_s = time.monotonic()
    process = _WARM.Process(target=_run_pytest, args=(str(tree), command, str(words)))
    process.start()
    process.join(RUN_TIMEOUT_S)
    late = process.exitcode is None
    if late:
        # Asked nicely, pytest ends the servers of its fixtures.
        os.kill(process.pid or 0, signal.SIGINT)
        process.join(STOP_TIMEOUT_S)
        process.kill()
        process.join()
    took_s = time.monotonic() - began_s
    output = words.read_text(errors="replace")
    if late:
        raise CannotTell(f"pytest {' '.join(targets)} did not end; it said {output[-500:]}")
    if process.exitcode in (0, 5):
        return TestRun("", "", process.exitcode == 0, took_s)
    found = _FAILED.search(output)
    if process.exitcode != 1 or found is None or _BROKEN.search(output):
        raise CannotTell(f"pytest {' '.join(targets)} ended with {process.exitcode}: {output[-1500:]}")
    return TestRun(found[1], found[2] or "", True, took_s)
