"""Every check of the project. `pip install nox && nox` runs those that have to pass before a change lands.

`nox -s lint types` is the quick part. `nox -s tests -- tests/unit/node/ownership/test_placement.py` runs that file alone, and with
`--hypothesis-profile=fast` behind it Hypothesis tries ten examples of each property instead of a hundred.

All sessions but `tests_all` share one virtual environment, `.nox/shared`: it is made on first use and brought
up to date when `pyproject.toml` changes. One installation instead of one per session saves minutes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["plan", "lint", "types", "tests", "sim", "chaos"]
# The cheap checks come first; one that fails should not hide what the others have to say.
nox.options.stop_on_first_error = False
# For `tests_all`, which takes the versions that are there.
nox.options.error_on_missing_interpreters = False

ROOT = Path(__file__).parent
SHARED = ROOT / ".nox" / "shared"
BIN = SHARED / ("Scripts" if os.name == "nt" else "bin")
PYTHON_VERSIONS = ["3.11", "3.12", "3.13"]
EXTRAS = ".[testing,dev,uvloop]"
# How often each thing happens in `chaos_long`.
LONG_CHAOS = {
    "AA_TESTS_CHAOS_CLUSTER_KILLS": "200",
    "AA_TESTS_CHAOS_FAILOVERS": "30",
    "AA_TESTS_CHAOS_MIGRATIONS": "20",
}
#: Most tests wait, for a server or a lease. What a file's tests share is made once.
SIDE_BY_SIDE = ["-n", "2", "--dist", "loadfile"]
#: Those with servers use less than half of a processor each.
MOSTLY_WAITING = ["-n", "3", "--dist", "loadfile"]
#: What a word behind one of these means is no file to run.
EXPRESSION_FOLLOWS = ("-k", "-m", "--deselect", "--ignore")
#: What each session takes on two processors, about. The conformance suite and `tests/redis` take a third longer where
#: there is a third server.
MINUTES = {"lint": 1, "types": 1, "tests": 11, "sim": 7, "chaos": 4}
# Run by sessions of their own.
APART = ["types", "simulation", "cluster", "model", "chaos"]


def prepare_shared(session: nox.Session) -> None:
    stamp = SHARED / "installed"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    session.run(sys.executable, "-m", "virtualenv", "--clear", "--quiet", str(SHARED))
    session.run(str(BIN / "python"), "-m", "pip", "install", "--quiet", "--editable", EXTRAS)
    stamp.write_text(wanted)


def run(session: nox.Session, *command: str) -> None:
    """Run a command of the shared environment, as if that were activated."""
    prepare_shared(session)
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
    program, *arguments = command
    session.run(str(BIN / program), *arguments, env={"PATH": path, "VIRTUAL_ENV": str(SHARED)})


def without(*folders: str) -> list[str]:
    return [f"--ignore=tests/{folder}" for folder in folders]


def named_files(session: nox.Session) -> list[str]:
    """The files and folders of tests that the command line names."""
    words = list(session.posargs)
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if Path(word).parts[:1] == ("tests",) and before not in EXPRESSION_FOLLOWS
    ]


def run_tests(session: nox.Session, *default: str, side_by_side: Sequence[str]) -> None:
    """Run these tests, or only those that the command line names."""
    named = named_files(session)
    chosen = () if named else default
    # To start other processes takes longer than most files do.
    is_one_file = len(named) == 1 and ".py" in named[0]
    run(session, "pytest", *chosen, *(() if is_one_file else side_by_side), *session.posargs)


def servers() -> str:
    """Which servers the tests will run on."""
    wheels = "Valkey 9 and Redis 8.2, which come as wheels"
    path = shutil.which("redis-server")
    if path is None:
        return f"{wheels}; there is no redis-server on PATH"
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return f"{wheels}; {said.partition(' sha=')[0]} at {path}"


@nox.session
def plan(session: nox.Session) -> None:
    """Say what `nox` is about to do, on which servers, and for how long."""
    for name, minutes in MINUTES.items():
        session.log(f"{name}: {globals()[name].__doc__.partition(chr(10))[0]} About {minutes} min.")
    session.log(
        f"In all about {sum(MINUTES.values())} minutes on two processors that have nothing else to do,"
    )
    session.log("and some more the first time, when the environment is made. `nox -s lint types` is quick.")
    session.log(f"Servers: {servers()}.")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, layers, news fragments, and whether generated files are up to date."""
    run(session, "ruff", "check")
    run(session, "ruff", "format", "--check")
    run(session, "lint-imports")
    run(session, "towncrier", "build", "--draft", "--version", "next")
    run(session, "python", "-m", "atomic_actors.tools.codegen", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Strict mypy and pyright, over the source and over what users would write."""
    run(session, "mypy")
    run(session, "pyright", "--pythonpath", str(BIN / "python"))
    run(session, "pytest", "tests/types")


@nox.session
def tests(session: nox.Session) -> None:
    """Unit, conformance and integration tests, with real servers.

    `nox -s tests -- -k commit` and `nox -s tests -- tests/unit/base/test_lifecycle.py` run some of them.
    """
    run_tests(session, "tests", *without(*APART), side_by_side=MOSTLY_WAITING)


@nox.session(python=PYTHON_VERSIONS, venv_backend="virtualenv", reuse_venv=True)
def tests_all(session: nox.Session) -> None:
    """The tests on every supported Python that this machine has."""
    session.install("--editable", EXTRAS)
    # Here also those modes of the conformance suite that add little but time.
    chosen = () if named_files(session) else ("tests", *without(*APART))
    session.run("pytest", *chosen, *session.posargs, env={"AA_TESTS_ALL_MODES": "1"})


@nox.session
def sim(session: nox.Session) -> None:
    """Simulated clusters by seed, on a clock that jumps, and every state of a model."""
    run_tests(session, "tests/simulation", "tests/model", side_by_side=SIDE_BY_SIDE)
    if named_files(session):
        return
    # It uses two processes by itself, takes minutes, and says what it has met.
    run(session, "pytest", "tests/cluster", "-s", "-o", "faulthandler_timeout=0", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Real servers and processes, killed and paused while they work."""
    run_tests(session, "tests/chaos", side_by_side=SIDE_BY_SIDE)


@nox.session
def chaos_long(session: nox.Session) -> None:
    """Chaos as often as a release needs it: 200 kills of workers, 30 failovers, 20 slot migrations."""
    # What is set outside wins: `AA_TESTS_CHAOS_CLUSTER_KILLS=1000 nox -s chaos_long -- -k test_kills`.
    for name, count in LONG_CHAOS.items():
        os.environ.setdefault(name, count)
    run(session, "pytest", "tests/chaos", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Simulation, fuzzing and chaos with new seeds, for as long as `AA_TESTS_SOAK_S` says (600 s each)."""
    seconds = os.environ.setdefault("AA_TESTS_SOAK_S", "600")
    run(session, "python", "-m", "tests.cluster", "--for-s", seconds)
    run(session, "python", "-m", "tests.fuzz", "--seconds", seconds)
    run(
        session,
        *("pytest", "tests/simulation", "tests/chaos"),
        *("--hypothesis-profile=soak", "--timeout=0", "-o", "faulthandler_timeout=0"),
        *session.posargs,
    )


@nox.session
def bench(session: nox.Session) -> None:
    """The measurements that the docs quote."""
    run(session, "python", "-m", "benchmarks", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Whether links between pages resolve and generated pages are up to date."""
    run(session, "python", "-m", "atomic_actors.tools.codegen", "--check")
    run(session, "pytest", "tests/test_tidy.py", "-k", "links")


@nox.session
def generate(session: nox.Session) -> None:
    """Write the generated files again; `nox -s generate -- --check` only compares them."""
    run(session, "python", "-m", "atomic_actors.tools.codegen", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Break each guard in turn; fails where no test notices. Ten minutes or more: for a release, or a change of a guard."""
    run(session, "python", "-m", "tests.mutation", *session.posargs)
