"""The pytest plugin, in a pytest of its own with real servers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from atomic_actors.journal.embedded._launch import find_binary

pytest_plugins = ["pytester"]

NO_SERVERS = pytest.mark.skipif(sys.platform == "win32", reason="there is no private server on Windows")

ACTORS = """
import os
from pathlib import Path

import anyio
import pytest
from attrs import define, frozen

from atomic_actors import Actor, ActorSystem, Command, Config, Query, handler

@frozen
class Deposit(Command[int]):
    amount: int

@frozen
class GetBalance(Query[int]):
    pass

@define
class Balance:
    amount: int = 0

class Account(Actor[Balance], kind="account"):
    @handler(transactional=True)
    async def deposit(self, message: Deposit) -> int:
        self.state.amount += message.amount
        return self.state.amount

    @handler
    async def balance(self, message: GetBalance) -> int:
        return self.state.amount

async def one_deposit(new_system):
    async with new_system(Account) as system:
        assert await system.ask(Account.ref("a"), Deposit(5)) == 5
    async with new_system(Account) as system:
        assert await system.ask(Account.ref("a"), GetBalance()) == 5
"""


class Run:
    """Runs a file of tests in a pytest process of its own, in which warnings are errors."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester

    def __call__(self, text: str, *arguments: str) -> pytest.RunResult:
        self.pytester.makepyfile(ACTORS + text)
        return self.pytest("-W", "error", *arguments)

    def pytest(self, *arguments: str) -> pytest.RunResult:
        options = ("-p", "atomic_actors_pytest", "-p", "no:cacheprovider")
        return self.pytester.runpytest_subprocess(*options, *arguments, timeout=50)


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    # Other plugins that happen to be installed take long to load, and may do what they like.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return Run(pytester)


@NO_SERVERS
def test_systems_on_both_event_loops(run: Run) -> None:
    run(
        """
pytestmark = pytest.mark.anyio

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param

async def test_memory(actor_system):
    await one_deposit(actor_system)

async def test_valkey(actor_valkey_system):
    await one_deposit(actor_valkey_system)

async def test_url(actor_valkey_url):
    async with ActorSystem(Config(url=actor_valkey_url, actors=[Account], partitions=2)) as system:
        assert await system.ask(Account.ref("a"), Deposit(5)) == 5
""",
        "-p",
        "anyio",
    ).assert_outcomes(passed=6)


def test_systems_without_an_async_plugin(run: Run) -> None:
    run("""
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_memory(actor_system, backend):
    anyio.run(one_deposit, actor_system, backend=backend)
""").assert_outcomes(passed=2)


@NO_SERVERS
@pytest.mark.parametrize(
    ("plugin", "marker", "options"),
    [
        ("pytest_asyncio", "pytest.mark.asyncio", ("-o", "asyncio_default_fixture_loop_scope=function")),
        ("pytest_trio", "pytest.mark.trio", ()),
    ],
)
def test_systems_with_other_plugins(run: Run, plugin: str, marker: str, options: tuple[str, ...]) -> None:
    run(
        f"""
pytestmark = {marker}

async def test_memory(actor_system):
    await one_deposit(actor_system)

async def test_valkey(actor_valkey_system):
    await one_deposit(actor_valkey_system)
""",
        "-p",
        f"{plugin}.plugin",
        *options,
    ).assert_outcomes(passed=2)


@NO_SERVERS
def test_one_server_for_the_run_and_none_afterwards(run: Run, pytester: pytest.Pytester) -> None:
    run("""
@pytest.mark.parametrize("number", [1, 2])
def test_server(actor_valkey_server, number):
    assert actor_valkey_server.call("INFO", "server")["process_id"] == actor_valkey_server.pid
    with open("servers", "a") as servers:
        print(actor_valkey_server.pid, actor_valkey_server.directory, file=servers)
    assert actor_valkey_server.directory.stat().st_mode & 0o077 == 0
""").assert_outcomes(passed=2)
    lines = (pytester.path / "servers").read_text().splitlines()
    assert len(lines) == 2
    assert len(set(lines)) == 1
    pid, directory = lines[0].split(maxsplit=1)
    assert not Path(directory).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@NO_SERVERS
def test_a_server_that_was_killed_keeps_what_it_accepted(run: Run) -> None:
    run("""
def test_restart(actor_valkey_server):
    actor_valkey_server.call("SET", "key", "value")
    former = actor_valkey_server.pid
    actor_valkey_server.kill()
    assert not actor_valkey_server.is_running
    actor_valkey_server.start()
    assert actor_valkey_server.pid != former
    assert actor_valkey_server.call("GET", "key") == "value"

def test_killed(actor_valkey_server):
    actor_valkey_server.kill()
    with pytest.raises(Exception, match="does not run"):
        actor_valkey_server.pid

def test_next_one(actor_valkey_system, actor_valkey_server):
    anyio.run(one_deposit, actor_valkey_system)
    assert actor_valkey_server.call("GET", "key") == "value"

def test_database_of_a_test_is_empty(actor_valkey_url, actor_valkey_server):
    assert actor_valkey_server.call("DBSIZE", db=1) == 0
    assert actor_valkey_server.call("DBSIZE") == 1
""").assert_outcomes(passed=4)


def write_program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


SERVER_TEST = """
def test_server(actor_valkey_server):
    assert actor_valkey_server.call("DBSIZE") == 0
"""


@NO_SERVERS
@pytest.mark.parametrize("place", ["option", "setting", "both"])
def test_another_server_program(run: Run, pytester: pytest.Pytester, place: str) -> None:
    used = pytester.path / "used"
    other = write_program(pytester.path / "other", f'touch {used}; exec {find_binary(None)} "$@"')
    setting = "nonsense" if place == "both" else os.fspath(other)
    if place != "option":
        pytester.makeini(f"[pytest]\natomic_actors_server = {setting}\n")
    options = () if place == "setting" else ("--atomic-actors-server", os.fspath(other))
    run(SERVER_TEST, *options).assert_outcomes(passed=1)
    assert used.exists()


@NO_SERVERS
def test_a_program_that_is_missing_is_named(run: Run) -> None:
    missing = run(SERVER_TEST, "--atomic-actors-server", "no-such-server")
    missing.assert_outcomes(errors=1)
    missing.stdout.fnmatch_lines(
        ["*EmbeddedServerError: there is no server program 'no-such-server' on PATH*"]
    )


@NO_SERVERS
def test_a_program_that_ends_is_named(run: Run, pytester: pytest.Pytester) -> None:
    ends = write_program(pytester.path / "ends", "exit 3")
    broken = run(SERVER_TEST, "--atomic-actors-server", os.fspath(ends))
    broken.assert_outcomes(errors=1)
    broken.stdout.fnmatch_lines(["*ends ended with status 3 while it was starting*"])


@NO_SERVERS
def test_a_server_that_is_not_the_process_that_was_started(run: Run, pytester: pytest.Pytester) -> None:
    child = pytester.path / "child"
    other = write_program(pytester.path / "other", f'{find_binary(None)} "$@" &\necho $! > {child}\nwait')
    result = run(SERVER_TEST, "--atomic-actors-server", os.fspath(other))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*a script that starts a server has to `exec` it*"])
    assert not is_alive(int(child.read_text()))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_the_plugin_costs_nothing_where_it_is_not_used(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
import sys

def test_modules(pytestconfig):
    assert pytestconfig.pluginmanager.hasplugin("atomic_actors_pytest")
    heavy = {"atomic_actors", "anyio", "attrs", "coredis", "redis", "msgspec", "hypothesis", "trio"}
    assert not [name for name in heavy if name in sys.modules]
""")
    run.pytest().assert_outcomes(passed=1)


def test_options_are_described(run: Run) -> None:
    run.pytest("--help").stdout.fnmatch_lines(
        ["*--atomic-actors-server=PROGRAM*", "*atomic_actors_server (string):*"]
    )


def test_fixtures_are_described(run: Run) -> None:
    run.pytest("--fixtures").stdout.fnmatch_lines_random(
        [
            f"{name}* -- *atomic_actors_pytest.py:*"
            for name in ("actor_system", "actor_valkey_server", "actor_valkey_system", "actor_valkey_url")
        ]
    )
