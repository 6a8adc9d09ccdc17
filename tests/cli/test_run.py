"""`atomic-actors run`: real processes that are killed, reloaded, stopped, abandoned."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from atomic_actors._system import ActorSystem
from atomic_actors.tools.workers._reports import Failed, Ready, Report, ReportReader
from tests.cli.application import ROOT
from tests.cli.conftest import Command
from tests.cli.running import MODULE, PARTITIONS, PATIENCE_S, SERVING, Running, running, store_of
from tests.cli.workers_application import BEGUN, Add, Block, Counter, Nap, WhoAreYou
from tests.sentinel_servers import wait_for
from tests.servers import Server

pytestmark = [pytest.mark.timeout(180)]
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])
SERVED = r"system is served; the store is redis://127"


class Traffic:
    """Asks that go on beside whatever happens."""

    def __init__(self, system: ActorSystem) -> None:
        self.system = system
        self.answered = 0
        self.stopping = False
        self._one_more = anyio.Event()

    async def ask_on(self, name: str) -> None:
        """One after another to one entity; each answer proves that none was lost and none ran twice."""
        done = 0
        while not self.stopping:
            assert await self.system.ask(Counter.ref(name), Add(1)) == done + 1
            done += 1
            self.answered += 1
            self._one_more.set()
            self._one_more = anyio.Event()
            await anyio.sleep(0.005)

    async def more(self, count: int) -> None:
        """Wait until so many more were answered."""
        enough = self.answered + count
        with anyio.fail_after(PATIENCE_S):
            while self.answered < enough:
                await self._one_more.wait()


@asynccontextmanager
async def traffic(run: Running) -> AsyncGenerator[Traffic]:
    async with run.sender() as system:
        asking = Traffic(system)
        async with anyio.create_task_group() as group:
            for name in "abcdefgh":
                group.start_soon(asking.ask_on, name)
            await asking.more(8)
            yield asking
            await asking.more(8)
            asking.stopping = True


async def in_thread(run: Running, pattern: str, count: int = 1) -> list[re.Match[str]]:
    return await anyio.to_thread.run_sync(partial(run.wait_for, pattern, count))


# Ends that nobody asked for.


@BACKENDS
def test_a_killed_worker_is_restarted_and_asks_go_on(
    valkey_server: Server, namespace: str, backend: str
) -> None:
    async def main(run: Running) -> None:
        await in_thread(run, SERVED)
        async with traffic(run) as asking:
            # Whoever owns an entity now is killed, so that asks are under way there.
            pid = await asking.system.ask(Counter.ref("a"), WhoAreYou())
            (number,) = [number for number, found in run.serving().items() if found == pid]
            os.kill(pid, signal.SIGKILL)
            await asking.more(50)
            await in_thread(run, rf"worker {number} \(process {pid}\) was killed by SIGKILL")
            await in_thread(run, rf"worker {number}: serving, pid \d+, .*, 1 restart\b")
        assert run.serving()[number] != pid

    with running("--workers", "2", "--backend", backend, server=valkey_server, namespace=namespace) as run:
        anyio.run(main, run)
        run.send(signal.SIGTERM)
        assert run.wait_code() == 0


def test_a_worker_that_dies_at_every_start_is_waited_for_longer_and_longer(
    valkey_server: Server, namespace: str, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    with running(
        server=valkey_server,
        namespace=namespace,
        target=f"{MODULE}:serve_once",
        environment={"AA_TESTS_STARTS": str(starts)},
    ) as run:
        run.wait_for(r"worker 1: serving")
        os.kill(run.serving()[1], signal.SIGKILL)
        waits = [float(found[1]) for found in run.wait_for(r"is started again in ([\d.]+) s", 3)]
        assert waits == [0.5, 1.0, 2.0]
        run.wait_for(r"worker 1 \(process \d+\) ended with exit code 3 before it was ready", 3)
        run.send(signal.SIGTERM)
        assert run.wait_code() == 0
        assert len(starts.read_text().split()) == 4, run.output


# Reload.


@BACKENDS
def test_no_ask_fails_while_workers_are_reloaded(valkey_server: Server, namespace: str, backend: str) -> None:
    async def main(run: Running) -> None:
        await in_thread(run, SERVED)
        before = run.serving()
        async with traffic(run) as asking:
            run.send(signal.SIGHUP)
            await in_thread(run, "reloaded 2 of 2 workers")
            await asking.more(8)
            pid = await asking.system.ask(Counter.ref("a"), WhoAreYou())
        after = run.serving()
        assert before.keys() == after.keys() == {1, 2}
        assert not {*before.values()} & {*after.values()}
        assert pid in after.values()
        for old in before.values():
            await anyio.to_thread.run_sync(run.wait_gone, old)

    with running("--workers", "2", "--backend", backend, server=valkey_server, namespace=namespace) as run:
        anyio.run(main, run)
        assert "restart" in run.output
        assert "1 restart," not in run.output
        run.send(signal.SIGTERM)
        assert run.wait_code() == 0


def test_a_reload_of_code_that_does_not_start_keeps_the_old_workers(
    valkey_server: Server, namespace: str, tmp_path: Path
) -> None:
    application = tmp_path / "shop.py"
    application.write_text(f"from {MODULE} import config\n")

    async def main(run: Running) -> None:
        await in_thread(run, r"shop:config is served")
        before = run.serving()
        async with traffic(run):
            application.write_text("config = \n")
            run.send(signal.SIGHUP)
            (found,) = await in_thread(run, r"error: the reload is given up: (.*)")
            assert found[1].startswith("the new worker 1 could not start: importing shop failed: SyntaxError")
        await in_thread(run, "reloaded 0 of 2 workers")
        assert run.serving() == before

    with running(
        "--workers", "2", server=valkey_server, namespace=namespace, target="shop:config", directory=tmp_path
    ) as run:
        anyio.run(main, run)
        run.send(signal.SIGTERM)
        assert run.wait_code() == 0


# Stopping.


@BACKENDS
def test_sigterm_releases_every_partition(valkey_server: Server, namespace: str, backend: str) -> None:
    def claims() -> list[str]:
        """The claim id in each partition's lease; "" where nobody owns it."""
        keys = (f"{{{namespace}:default:{partition}}}:L" for partition in range(PARTITIONS))
        return [valkey_server.call("HGET", key, "c") for key in keys]

    with running("--workers", "2", "--backend", backend, server=valkey_server, namespace=namespace) as run:
        run.wait_for(SERVED)
        # One that goes over from the first worker to the second has no owner for a moment.
        wait_for(lambda: all(claims()), "an owner of every partition", PATIENCE_S)
        run.send(signal.SIGTERM)
        assert run.wait_code() == 0
        assert claims() == [""] * PARTITIONS
        assert "killed" not in run.output


def test_sigint_stops_and_a_second_signal_does_not_wait(valkey_server: Server, namespace: str) -> None:
    async def nap(run: Running) -> None:
        async with run.sender() as system:
            await system.tell(Counter.ref("a"), Nap())

    with running(
        server=valkey_server, namespace=namespace, environment={"ATOMIC_ACTORS_DRAIN_TIMEOUT_S": "0"}
    ) as run:
        run.wait_for(SERVED)
        anyio.run(nap, run)
        run.wait_for(BEGUN)
        run.send(signal.SIGINT)
        run.wait_for(r"worker 1: leaving")
        run.wait_for(r"WARNING atomic_actors: SIGTERM: shutting down")
        run.send(signal.SIGINT)
        assert run.wait_code() == 0
        assert "1 turns are interrupted by the shutdown" in run.output
        assert "killed" not in run.output


def test_a_worker_that_does_not_leave_is_killed(valkey_server: Server, namespace: str) -> None:
    async def block(run: Running) -> None:
        async with run.sender() as system:
            await system.tell(Counter.ref("a"), Block())

    with running(server=valkey_server, namespace=namespace) as run:
        run.wait_for(SERVED)
        anyio.run(block, run)
        run.wait_for(BEGUN)
        for _ in range(3):
            # One at a time: signals that wait are not counted.
            seen = len(run.lines)
            run.send(signal.SIGTERM)
            run.wait_for("", seen + 1)
        assert run.wait_code() == 1
        run.wait_for(r"did not leave in time and is killed")


# A parent that is gone.


@BACKENDS
def test_no_worker_outlives_its_parent(valkey_server: Server, namespace: str, backend: str) -> None:
    with running("--workers", "2", "--backend", backend, server=valkey_server, namespace=namespace) as run:
        run.wait_for(SERVED)
        workers = run.serving()
        run.process.kill()
        for pid in workers.values():
            run.wait_gone(pid)
        # In good order: each has said why it goes.
        run.wait_for(r"WARNING atomic_actors: SIGTERM: shutting down", 2)


def test_a_worker_with_a_blocked_loop_does_not_outlive_its_parent(
    valkey_server: Server, namespace: str
) -> None:
    store = {**store_of(valkey_server, namespace), "ATOMIC_ACTORS_DRAIN_TIMEOUT_S": "0.2"}
    mine, theirs = socket.socketpair()
    program = (
        "import sys; from atomic_actors.tools.workers import worker; worker.ORPHAN_MARGIN_S = 0.2; "
        "sys.exit(worker.main())"
    )
    words = ["--number=1", "--workers=1", "--backend=asyncio", f"--channel={theirs.fileno()}"]

    async def block() -> None:
        async with ActorSystem(Running(process, store).config()) as system:
            await system.tell(Counter.ref("a"), Block())

    with mine:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", program, f"{MODULE}:system", *words],
                cwd=ROOT,
                env={**os.environ, **store},
                pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            (first,) = read_reports(mine, 1)
            assert isinstance(first, Ready), first
            anyio.run(block)
            assert process.stdout is not None
            assert process.stdout.readline() == f"{BEGUN}\n"
            mine.close()
            _, errors = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == 70, errors


def read_reports(channel: socket.socket, count: int) -> list[Report]:
    reader = ReportReader(channel)
    reports: list[Report] = []
    while len(reports) < count and not reader.ended:
        readable, _, _ = select.select([channel], [], [], PATIENCE_S)
        assert readable
        reports += reader.read_nowait()
    return reports[:count]


def test_the_children_of_a_worker_do_not_hold_its_channel() -> None:
    """What a worker starts may live longer; that the worker is gone must be seen all the same."""
    mine, theirs = socket.socketpair()
    number = theirs.fileno()
    program = (
        "import os, subprocess, sys; from atomic_actors.tools.workers import worker; "
        f"worker.main(['nothing:x', '--number=1', '--workers=1', '--backend=asyncio', '--channel={number}']); "
        f"sys.exit(os.get_inheritable({number}))"
    )
    with mine:
        with theirs:
            done = subprocess.run([sys.executable, "-c", program], pass_fds=[number], check=False, timeout=60)
        assert done.returncode == 0
        (failed,) = read_reports(mine, 1)
        assert isinstance(failed, Failed)
        assert failed.code == 2


# What cannot start.


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        ("tests.cli.nothing:system", 2, "there is no module 'tests.cli.nothing'"),
        (f"{MODULE}:nothing", 2, f"the module {MODULE} has no 'nothing'; it should be an ActorSystem, a Config"),
        (f"{MODULE}:Sub.actors", 2, f"{MODULE}:Sub.actors is of type Counter; it should be an ActorSystem"),
        (f"{MODULE}:memory", 2, "url='memory:' lives inside one process, and 2 cannot share it"),
        (f"{MODULE}:make_wrong_config", 2, "lease_margin_s: 0.5 leaves nothing of lease_ttl_s"),
        (f"{MODULE}:fail", 1, f"calling {MODULE}:fail failed: RuntimeError: no bank ("),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_said_once(command: Command, target: str, code: int, said: str) -> None:
    run = command("run", target, "--workers", "2")
    assert run.code == code, run.errors
    errors = [line for line in run.errors.splitlines() if not line.startswith("worker")]
    assert len(errors) == 1, run.errors
    assert errors[0].startswith("error: ")
    assert said in errors[0]
    assert run.output == ""


@BACKENDS
def test_an_unreachable_store_is_said_once(
    command: Command, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"redis://u:secret@127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv("ATOMIC_ACTORS_URL", url)
        run = command("run", f"{MODULE}:system", "--workers", "2", "--backend", backend)
    assert run.code == 1
    errors = [line for line in run.errors.splitlines() if not line.startswith("worker")]
    assert len(errors) == 1, run.errors
    assert errors[0].startswith("error: no answer from redis://u@127.0.0.1:")
    assert "secret" not in run.errors


def test_an_error_deep_in_an_import_has_its_traceback_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outer_module.py").write_text("import inner_module\n")
    (tmp_path / "inner_module.py").write_text("\n1 / 0\n")
    run = command("run", "outer_module:system", "--workers", "3")
    assert run.code == 1
    assert run.errors.count("Traceback") == 1
    assert run.errors.count("error: ") == 1
    assert "error: importing outer_module failed: ZeroDivisionError: division by zero (" in run.errors
    assert "inner_module.py, line 2)" in run.errors
    assert "importlib" not in run.errors


def test_a_worker_that_is_never_ready_is_given_up(command: Command) -> None:
    run = command("run", f"{MODULE}:hang", "--start-timeout", "2")
    assert run.code == 1
    assert "error: worker 1 was not ready within 2 s\n" in run.errors


# Forms of targets, and the screen.


@pytest.mark.parametrize("target", ["make_system", "make_config", "config"])
def test_what_a_target_may_be(valkey_server: Server, namespace: str, target: str) -> None:
    with running(server=valkey_server, namespace=namespace, target=f"{MODULE}:{target}") as run:
        run.wait_for(rf"worker 1: serving, .* turns/s, owns {PARTITIONS} of {PARTITIONS} partitions")
        run.send(signal.SIGTERM)
        assert run.wait_code() == 0
        assert ("printed by a worker" in run.output) == (target == "make_system")


def test_uvloop(valkey_server: Server, namespace: str) -> None:
    pytest.importorskip("uvloop")
    with running("--uvloop", server=valkey_server, namespace=namespace) as run:
        run.wait_for(r"worker 1: serving")
        run.send(signal.SIGTERM)
        assert run.wait_code() == 0


def test_without_a_terminal_a_line_says_what_has_changed(valkey_server: Server, namespace: str) -> None:
    with running(server=valkey_server, namespace=namespace) as run:
        run.wait_for(rf"worker 1: serving, pid \d+, up \d+ s, 0 restarts, .* owns {PARTITIONS}")
        run.send(signal.SIGTERM)
        assert run.wait_code() == 0
    lines = [re.sub(r"up \d+ s", "", line) for line in run.lines if line.startswith("worker 1:")]
    assert len(lines) == len({*lines}), run.output
    # A quick one serves before the first look at it.
    assert re.match(r"worker 1: (starting|serving), pid ", lines[0])
    assert lines[-1] == "worker 1: stopped, 0 restarts"


def test_on_a_terminal_the_lines_are_refreshed_in_place(valkey_server: Server, namespace: str) -> None:
    mine, theirs = pty.openpty()
    environment = {**store_of(valkey_server, namespace), "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-m", "atomic_actors", "run", f"{MODULE}:make_system"],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        text, asked = "", False
        try:
            with suppress(OSError):
                while part := os.read(mine, 4096):
                    text += part.decode()
                    if not asked and f"{PARTITIONS} of {PARTITIONS}" in text:
                        asked = True
                        process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0, text
        finally:
            process.kill()
            os.close(mine)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "1 | printed by a worker" in plain
    assert re.search(rf"1 +serving +\d+ +\d+ s +0 +0 +{PARTITIONS} of {PARTITIONS} +0", plain), plain
    assert re.search(r"1 +stopped +- +- +0", plain), plain
    assert "\x1b[1A" in text  # the cursor goes up again, so nothing scrolls
    assert not SERVING.search(plain)


def test_workers_do_not_die_when_nobody_reads_the_log_any_more(valkey_server: Server, namespace: str) -> None:
    async def main(process: subprocess.Popen[str], store: dict[str, str]) -> None:
        async with Running(process, store).sender() as system:
            pid = await system.ask(Counter.ref("a"), WhoAreYou())
            os.kill(pid, signal.SIGKILL)
            # Only a parent that lives starts another one.
            assert await system.ask(Counter.ref("a"), WhoAreYou()) != pid

    store = store_of(valkey_server, namespace)
    with subprocess.Popen(
        [sys.executable, "-m", "atomic_actors", "run", f"{MODULE}:system"],
        cwd=ROOT,
        env={**os.environ, **store},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "is served" in line:
                    break
            process.stderr.close()
            anyio.run(main, process, store)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


def test_a_terminal_that_is_closed_stops_the_workers(valkey_server: Server, namespace: str) -> None:
    """Its SIGHUP is no request to reload."""
    mine, theirs = pty.openpty()
    program = (
        "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        f"os.execv(sys.executable, [sys.executable, '-m', 'atomic_actors', 'run', '{MODULE}:make_system'])"
    )
    environment = {**store_of(valkey_server, namespace), "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            text, found = "", None
            while found is None:
                text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(mine, 4096).decode())
                found = re.search(rf"1 +serving +(\d+) +\d+ s +0 +0 +{PARTITIONS} of {PARTITIONS}", text)
            worker = os.pidfd_open(int(found[1]))
            os.close(mine)
            assert process.wait(PATIENCE_S) == 0, text
            readable, _, _ = select.select([worker], [], [], PATIENCE_S)
            assert readable
            os.close(worker)
        finally:
            process.kill()
