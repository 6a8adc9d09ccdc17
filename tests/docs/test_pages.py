"""What the pages show works: Python examples run, commands exist, settings and names are real."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest

import atomic_actors
import atomic_actors.testing
from atomic_actors import Config
from tests.docs.pages import ROOT, Block, blocks_of, commands, pages, promised_output

PYTHON_PAGES = [page for page in pages() if blocks_of(page, "python")]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def run_python(arguments: list[str], directory: Path) -> str:
    """Run Python in `directory`; returns what it printed."""
    source = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout


# --- Python --------------------------------------------------------------------------------------------


def test_examples_are_found() -> None:
    assert {name_of(page) for page in PYTHON_PAGES} >= {"README.md", "docs/handlers.md", "docs/operations.md"}


@pytest.mark.parametrize("url", ["memory:", "embedded:store"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("page", PYTHON_PAGES, ids=name_of)
def test_examples_run(page: Path, backend: str, url: str, tmp_path: Path) -> None:
    printed = run_python(["-m", "tests.docs.pages", name_of(page), backend, url], tmp_path)
    assert printed.splitlines() == promised_output(blocks_of(page, "python"))


def test_the_first_example_runs_as_a_file(tmp_path: Path) -> None:
    """Copied as it is, with the default store, twice: the second run finds what the first one left."""
    (example,) = blocks_of(ROOT / "README.md", "python")
    (tmp_path / "bank.py").write_text(example.text, encoding="utf-8")
    assert run_python(["bank.py"], tmp_path) == "100\n"
    assert (tmp_path / ".atomic-actors" / "data").is_dir()
    assert run_python(["bank.py"], tmp_path) == "200\n"


# --- commands ------------------------------------------------------------------------------------------


def nox_sessions() -> set[str]:
    return set(
        re.findall(r"^@nox\.session.*\ndef (\w+)\(", (ROOT / "noxfile.py").read_text("utf-8"), re.MULTILINE)
    )


def unknown(command: str) -> str:
    """Why a command cannot be run as written; "" if it can."""
    words = shlex.split(command)
    match words:
        case ["pip", "install", *what] if all(
            word in (".", "-e", ".[dev]") or re.fullmatch(r"[\w\[\]-]+", word) for word in what
        ):
            return "" if what else "nothing to install"
        case ["nox", *options]:
            named = [word for option, word in itertools.pairwise(options) if option == "-s"]
            missing = set(named) - nox_sessions()
            if missing:
                return f"no nox session {', '.join(sorted(missing))}"
            gone = [word for word in options if word.startswith("tests/") and not (ROOT / word).exists()]
            return f"no tests at {gone[0]}" if gone else ""
        case ["python", "-m", module, *_]:
            return "" if importlib.util.find_spec(module) else f"no module {module}"
        case ["python", path]:
            # The pages tell their readers to save the examples so.
            saved = path in ("bank.py", "billing.py", "script.py", "shop.py", "worker.py")
            return "" if saved or (ROOT / path).is_file() else f"no file {path}"
        case [script, *_] if script in SCRIPTS:
            return ""
        case ["pytest"] | ["pytest", "--atomic-actors-server", _] | [".", ".venv/bin/activate"]:
            return ""
        case ["pytest", path, *_]:
            return "" if (ROOT / path).exists() else f"no tests at {path}"
        case ["redis-cli", "--cluster", "call", _, "CONFIG", "SET", *_]:
            return ""
        case ["redis-cli", "CONFIG", "SET", *_] | ["kill", "-HUP", _]:
            return ""
        case _:
            return "unknown program; teach this test to check it"


@pytest.mark.parametrize(
    "command",
    [
        *(
            "nox -s nothing",
            "nox -s tests -- tests/nothing.py",
            "python -m atomic_actors.nothing",
            "python nothing.py",
            "frobnicate",
            "pip install",
        ),
        "pytest tests/nothing",
    ],
)
def test_commands_that_do_not_exist_are_seen(command: str) -> None:
    assert unknown(command)


def test_commands_exist() -> None:
    found = list(commands())
    assert found
    problems = [
        f"{name_of(block.page)}:{block.line}: `{command}`: {why}"
        for block, command in found
        if (why := unknown(command))
    ]
    assert not problems, "\n" + "\n".join(problems)


def script_commands() -> list[tuple[str, ...]]:
    """`atomic-actors demo` and the like: the program and the words that choose what it does."""
    found: set[tuple[str, ...]] = set()
    for _, command in commands():
        script, *words = shlex.split(command)
        if script in SCRIPTS:
            found.add((script, *itertools.takewhile(lambda word: re.fullmatch(r"[a-z][a-z-]*", word), words)))
    return sorted(found)


@pytest.mark.parametrize("command", script_commands(), ids=" ".join)
def test_our_commands_explain_themselves(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    script, *words = command
    module, _, function = SCRIPTS[script].partition(":")
    run = getattr(importlib.import_module(module), function)
    assert run([*words, "--help"]) == 0
    assert f"Usage: {' '.join(command)} " in capsys.readouterr().out


# --- names ---------------------------------------------------------------------------------------------


def mentioned(pattern: str) -> list[tuple[Path, str]]:
    return [(page, found) for page in pages() for found in re.findall(pattern, page.read_text("utf-8"))]


def test_settings_that_pages_name_exist() -> None:
    settings = {attribute.name for attribute in attrs.fields(Config)}
    found = mentioned(r"`(?:Config\()?(\w+_s|max_\w+|allow_\w+|on_dead|on_interrupted)(?:=[^`]*)?\)?`")
    arguments = {"timeout_s", "expires_in_s", "accepted_at_s", "died_at_s", "max_connections"}
    assert found
    assert not [f"{name_of(page)}: {name}" for page, name in found if name not in settings | arguments]


def test_errors_that_pages_name_exist() -> None:
    found = mentioned(
        r"`(?:\w+\.)?([A-Z]\w+(?:Exceeded|Unavailable|Unknown|Timeout|Failed|Reused|Unsafe|Cycle|Hops))`"
    )
    assert found
    known: dict[str, Any] = {**vars(atomic_actors), **vars(atomic_actors.testing)}
    assert not [f"{name_of(page)}: {name}" for page, name in found if name not in known]


def test_a_block_knows_its_line() -> None:
    block: Block = blocks_of(ROOT / "README.md", "python")[0]
    first = block.text.splitlines()[0]
    assert block.page.read_text("utf-8").splitlines()[block.line - 1] == first
