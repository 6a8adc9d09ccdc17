"""`handle_signals` in a real process: the first signal leaves in good order, the second does not wait."""

from __future__ import annotations

import selectors
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from attrs import define, evolve

from atomic_actors import ActorSystem, Interrupted
from tests.servers import Server, namespace
from tests.system.signalled import config

__all__ = ("namespace",)

pytestmark = [
    pytest.mark.redis,
    pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name),
    pytest.mark.parametrize("backend", ["asyncio", "trio"]),
]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
#: How long a process that must not end is watched.
WATCH_S = 0.3


@define(eq=False)
class Child:
    process: subprocess.Popen[bytes]
    message_id: str = ""

    def line(self) -> str:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(PATIENCE_S), "the application says nothing"
        return self.process.stdout.readline().decode().strip()

    def end(self) -> tuple[int, str, str]:
        """The exit status, and what it still said."""
        output, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, output.decode(), errors.decode()


@contextmanager
def new_child(url: str, namespace: str, backend: str) -> Generator[Child]:
    """One whose turn has begun."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.system.signalled", url, namespace, backend],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A line that stays in a buffer of ours would not wake the selector.
        bufsize=0,
    )
    with process:
        try:
            child = Child(process)
            lines = {child.line(), child.line()}
            lines.discard("turn began")
            (child.message_id,) = lines
            yield child
        finally:
            process.kill()


async def find_out(url: str, namespace: str, message_id: str) -> tuple[str, list[str]]:
    """The message's reply, or that it was interrupted; and the reasons of the dead letters."""
    async with ActorSystem(evolve(config(url, namespace), handle_signals=False)) as system:
        reasons = [letter.reason for letter in await system.dead_letters.list()]
        try:
            return await system.result(message_id), reasons
        except Interrupted as error:
            return error.code, reasons


def test_the_first_signal_lets_the_turn_end(
    valkey_server: Server, namespace: str, backend: str, number: signal.Signals
) -> None:
    with new_child(valkey_server.url, namespace, backend) as child:
        child.process.send_signal(number)
        assert child.line() == "body cancelled"
        # It waits for the turn, for as long as that takes.
        with pytest.raises(subprocess.TimeoutExpired):
            child.process.wait(WATCH_S)
        assert child.process.stdin is not None
        child.process.stdin.write(b"\n")
        status, output, errors = child.end()
    assert (status, output.split("\n")) == (0, ["turn ended", "left", ""])
    assert f"{number.name}: shutting down; signal again to skip waiting for running turns" in errors
    assert "Traceback" not in errors
    found = anyio.run(find_out, valkey_server.url, namespace, child.message_id)
    assert found == ("waited", [])


def test_the_second_signal_does_not_wait(
    valkey_server: Server, namespace: str, backend: str, number: signal.Signals
) -> None:
    with new_child(valkey_server.url, namespace, backend) as child:
        child.process.send_signal(number)
        assert child.line() == "body cancelled"
        child.process.send_signal(number)
        assert child.line() == "turn cut"
        status, output, errors = child.end()
    assert (status, output.split("\n")) == (0, ["left", ""])
    assert "1 turns are interrupted by the shutdown" in errors
    assert "Traceback" not in errors
    found = anyio.run(find_out, valkey_server.url, namespace, child.message_id)
    assert found == ("interrupted", ["interrupted"])
