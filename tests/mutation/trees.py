"""Copies of the source tree, and processes that live in them."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.mutation.mutant import Mutant, apply

ROOT: Final = Path(__file__).parents[2]
#: What a tree needs to be tested and to have its generated files written again.
PARTS: Final = ("src", "tests", "docs", "pyproject.toml")
#: Of one test; a mutant may make it wait for what never comes.
TEST_TIMEOUT_S: Final = 40
#: Of a program in a tree.
CALL_TIMEOUT_S: Final = 120.0
#: Importing these takes longer than most mutants live, so processes are forked from one that has them.
WARM_MODULES: Final = (
    *("anyio", "anyio._backends._asyncio", "attrs", "coredis", "hypothesis", "msgspec", "pytest", "redis"),
    *("trio", "xxhash"),
)

WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(list(WARM_MODULES))


class CannotTell(Exception):
    """A test run ended in a way that says nothing about the guard."""


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
        timeout=CALL_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise CannotTell(f"python {' '.join(arguments)}: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


def make_mutated_tree(source: Path, tree: Path, mutant: Mutant) -> None:
    """Copy a tree and break the transition table in the copy. Lua's is generated again from it.

    Raises:
        DoesNotApply: the old text does not stand exactly once in the function.
        CannotTell: the generator failed.
    """
    copy_tree(source, tree)
    apply(tree, mutant)
    path = tree / mutant.file
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()
    call_python(tree, "-m", "atomic_actors.tools.codegen", "--root", str(tree))


def enter_tree(tree: str, output: str) -> None:
    """Make a process that was forked from a warm one live in a tree, with its words in a file."""
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "atomic_actors")]:
        if not name.startswith("tests.mutation"):
            del sys.modules[name]
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    # Compiled once in the unbroken tree, and copied with it.
    sys.dont_write_bytecode = False
    os.chdir(tree)
    others = {str(ROOT), str(ROOT / "src"), ""}
    sys.path[:] = [f"{tree}/src", tree, *(path for path in sys.path if path not in others)]
    importlib.invalidate_caches()
    imported = str(importlib.import_module("atomic_actors").__file__)
    if not Path(imported).is_relative_to(tree):
        sys.exit(f"{tree} imports {imported}")


def pytest_options(tree: str) -> list[str]:
    """What pytest is started with in a tree."""
    return [
        *("-x", "-q", "--tb=short", "-p", "no:xdist", "-p", "no:cacheprovider"),
        f"--timeout={TEST_TIMEOUT_S}",
        # The folder that every pytest shares is tidied by each of them, and they get in each other's way.
        f"--basetemp={tree}.tmp",
        # What a warm process has imported already.
        *("-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"),
    ]
