"""A volatile kind whose owner is another process, and is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from atomic_actors import ActorSystem, Interrupted
from tests.servers import Server, namespace
from tests.system.volatile_owner import Count, Counter, Hang, config

__all__ = ("namespace",)

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
COUNTER = Counter.ref("c")

Child = subprocess.Popen[bytes]


async def line_of(process: Child) -> str:
    assert process.stdout is not None
    with anyio.fail_after(PATIENCE_S):
        return (
            (await anyio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)).decode().strip()
        )


@pytest.fixture
def owner(anyio_backend_name: str, store_server: Server, namespace: str) -> Generator[Child]:
    """A process with the other event loop than this one's."""
    backend = "trio" if anyio_backend_name == "asyncio" else "asyncio"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.system.volatile_owner", store_server.url, namespace, backend],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_an_owner_that_is_killed(store_server: Server, namespace: str, owner: Child) -> None:
    assert await line_of(owner) == "owns"
    # Its share is nothing while the owner lives: else the entity might come here before the owner is killed.
    async with ActorSystem(config(store_server.url, namespace, weight=0.001)) as system:
        for times in (1, 2, 3):
            assert await system.ask(COUNTER, Count()) == (owner.pid, times)
        ended: list[float] = []

        async def hang() -> None:
            with pytest.raises(Interrupted, match=r"counter/c.*Hang may have run"):
                await system.ask(COUNTER, Hang(), timeout_s=60)
            ended.append(anyio.current_time())

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(hang)
            assert await line_of(owner) == "turn began"
            owner.kill()
            killed_s = anyio.current_time()
            # What is asked now waits for the next owner, which knows nothing of what was. Only what was sent
            # before the store saw the process's end may have reached it, for all that anybody knows.
            answer = None
            while answer is None:
                with suppress(Interrupted):
                    answer = await system.ask(COUNTER, Count(), timeout_s=PATIENCE_S)
            assert answer == (os.getpid(), 1)
        assert ended[0] - killed_s < PATIENCE_S / 2
        assert await system.ask(COUNTER, Count()) == (os.getpid(), 2)
