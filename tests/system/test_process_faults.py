"""What a handler can do to its process: fork it, and kill it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from atomic_actors import ActorSystem, Config, Interrupted
from tests.servers import Server, namespace
from tests.system.crashing import CRASHER, Crash, Crasher, Note

__all__ = ("namespace",)

pytestmark = [pytest.mark.redis, pytest.mark.parametrize("backend", ["asyncio", "trio"])]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 40.0


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"tests.system.{module}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_child_of_a_handler_is_nobody(valkey_server: Server, namespace: str, backend: str) -> None:
    """It neither commits nor ends anything of its parent's."""
    ended = run("forking", valkey_server.url, namespace, backend)
    assert (ended.returncode, ended.stdout) == (0, "99 99 3 3\n"), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_message_that_kills_its_process(valkey_server: Server, namespace: str, backend: str) -> None:
    """It costs one process, not one after the other; what stands behind it runs."""
    ended = run("crashing", valkey_server.url, namespace, backend)
    assert ended.returncode == -signal.SIGSEGV, ended.stderr

    async def look() -> None:
        config = Config(
            url=valkey_server.url,
            namespace=namespace,
            actors=[Crasher],
            partitions=2,
            allow_no_persistence=True,
        )
        async with ActorSystem(config) as system:
            assert await system.ask(CRASHER, Note()) == 2
            (letter,) = await system.dead_letters.list()
            assert (letter.name, letter.reason, letter.attempts) == (Crash.__name__, "interrupted", 1)
            with pytest.raises(Interrupted):
                await system.result(letter.message_id)
            assert (await system.audit()).is_balanced

    anyio.run(look, backend=backend)
