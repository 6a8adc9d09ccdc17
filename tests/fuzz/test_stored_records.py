"""Real systems on stores with damaged records."""

from __future__ import annotations

import pytest

from atomic_actors.journal._settings import journal_settings
from atomic_actors.journal.memory._journal import MemoryJournal
from tests.fuzz.effort import random_of, replay_command, seeds, soak_s
from tests.fuzz.scenes import Scene
from tests.fuzz.store_damage import MemoryDamage, ServerDamage
from tests.servers import Server
from tests.system.support import NewSystem

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60 + 2 * soak_s())]

MEMORY_INPUTS = 4
SERVER_INPUTS = 4


async def play_in_memory(number: int) -> None:
    new_system = NewSystem("memory:")
    journal = new_system.journal = MemoryJournal(journal_settings(new_system.config()))
    await Scene(random_of("memory", number), new_system, MemoryDamage(journal)).play()


async def play_on_server(number: int, server: Server) -> None:
    new_system = NewSystem(server.url)
    with server.client() as client:
        damage = ServerDamage(client, new_system.namespace)
        await Scene(random_of("server", number), new_system, damage).play()


async def test_in_memory() -> None:
    tried = 0
    for number in seeds(MEMORY_INPUTS):
        try:
            await play_in_memory(number)
        except Exception as error:
            raise AssertionError(f"{error}\n  replay: {replay_command('memory', number)}") from error
        tried += 1
    if soak_s():
        print(f"memory: {tried} inputs")


@pytest.mark.redis
async def test_on_a_server(valkey_server: Server) -> None:
    tried = 0
    for number in seeds(SERVER_INPUTS):
        try:
            await play_on_server(number, valkey_server)
        except Exception as error:
            raise AssertionError(f"{error}\n  replay: {replay_command('server', number)}") from error
        tried += 1
    if soak_s():
        print(f"server: {tried} inputs")
