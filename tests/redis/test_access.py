"""A user of the store with the rights that the docs name: they are enough, and a missing one is named."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis

from atomic_actors import ActorSystem, Config, HandlerFailed, StoreIncompatible, SystemFailed
from atomic_actors.journal.redis._link import ACL_RULES
from tests.chaos.network import run_network
from tests.servers import KINDS, Kind, Server, start_server
from tests.system.support import Break, Desk, Read, Send, Stage, Work, Write, desk, unlike, until

pytestmark = [pytest.mark.anyio, pytest.mark.redis, pytest.mark.parametrize("kind", KINDS)]

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
PARTITIONS = 4


@contextmanager
def server_with_user(kind: Kind, directory: Path, namespace: str, *without: str) -> Generator[Server]:
    """A server whose user `app` has these rights, but for `without`."""
    with start_server(kind, tmp_path=directory, tcp=True, appendonly="always") as server:
        rules = [rule for rule in ACL_RULES.split() if rule not in without]
        rules = [rule.replace("<namespace>", namespace) for rule in rules]
        server.call("ACL", "SETUSER", "app", "reset", "on", ">secret", *rules)
        yield server


def url_of(server: Server, db: int = 0) -> str:
    return f"redis://app:secret@127.0.0.1:{server.port}/{db}"


def new_system(url: str, namespace: str, *actors: Any) -> ActorSystem:
    return ActorSystem(Config(url=url, namespace=namespace, actors=actors, partitions=PARTITIONS))


def test_the_docs_name_these_rights(kind: Kind) -> None:
    (block,) = re.findall(r"```text\n(~\{<namespace>.*?)```", OPERATIONS.read_text(), re.DOTALL)
    assert block.split() == ACL_RULES.split()


@pytest.mark.parametrize("db", [0, 1])
async def test_they_are_enough(kind: Kind, namespace: str, tmp_path: Path, db: int) -> None:
    stage = Stage()
    with server_with_user(kind, tmp_path, namespace) as server:
        async with new_system(url_of(server, db), namespace, Desk.using(stage=stage)) as owner:
            # Twice: the library is loaded by the first, and looked at by the second.
            async with new_system(url_of(server, db), namespace) as sender:
                assert await sender.ask(desk(), Work("remote")) == "remote"
                other = unlike(desk(), partitions=PARTITIONS)[0]
                await sender.ask(desk(), Send(other.id, ["relayed"]))

                async def is_relayed() -> bool:
                    return await owner.ask(other, Read()) == ["relayed"]

                await until(is_relayed)
            with pytest.raises(HandlerFailed):
                await owner.ask(desk(), Break())
            (letter,) = await owner.dead_letters.list()
            await owner.dead_letters.replay(letter.message_id)
            await owner.pause(desk())
            receipt = await owner.tell(desk(), Write("a"), key="k", expires_in_s=60)
            assert await owner.withdraw(receipt)
            await owner.resume(desk())
            await owner.dead_letters.purge(letter.message_id)
            assert (await owner.audit()).is_balanced
        # Asked for, and done without: what the store is set to, and a name for the lease keeper's client.
        denied = {entry["object"].lower() for entry in denials(server)}
        assert denied <= {"config|get", "client|setinfo"}


def denials(server: Server) -> list[dict[str, str]]:
    with server.client(decode_responses=True) as client:
        return client.acl_log()  # type: ignore[no-any-return]


def test_they_are_not_too_many(kind: Kind, namespace: str, tmp_path: Path) -> None:
    with server_with_user(kind, tmp_path, namespace) as server:
        with server.client(username="app", password="secret") as client:
            for command in (
                "FLUSHALL",
                "FLUSHDB",
                "KEYS *",
                "CONFIG SET appendonly no",
                "FUNCTION FLUSH",
                "FUNCTION DELETE atomic_actors_1",
                "EVAL return 0",
                "SHUTDOWN",
                "ACL LIST",
                "GET {another}:key",
                # The name of another namespace may begin with this one's.
                f"GET {{{namespace}-two:default:0}}:L",
                "PUBLISH another:reply:node hello",
            ):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command.split())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "without",
    ["~{<namespace>:*", "+@read", "+@write", "+fcall", "+function|load", "+function|list", "+select"],
)
async def test_a_missing_right_is_named(kind: Kind, namespace: str, tmp_path: Path, without: str) -> None:
    with server_with_user(kind, tmp_path, namespace, without) as server:
        if without == "+function|list":
            # It matters where the library is there already.
            async with ActorSystem(Config(url=server.url, namespace=namespace, partitions=PARTITIONS)):
                pass
        with pytest.raises((StoreIncompatible, SystemFailed)) as refused:
            async with new_system(url_of(server, 1), namespace, Desk.using(stage=Stage())) as system:
                await system.ask(desk(), Write("a"))
        error = refused.value
        cause = error if isinstance(error, StoreIncompatible) else error.__cause__
        assert isinstance(cause, StoreIncompatible)
        assert "the store's user lacks a permission" in str(cause)
        assert str(cause).endswith(f"it needs {ACL_RULES}")


# --- told once, and not tried for ever -------------------------------------------------------------------

#: The journal, the lease keeper and the listeners may each have tried, and once more.
CONNECTIONS_MAX = 12


def warnings_of(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


async def test_a_wrong_password(kind: Kind, namespace: str, tmp_path: Path) -> None:
    with server_with_user(kind, tmp_path, namespace) as server, run_network(server.port) as network:
        url = network.url.replace("127", "app:wrong@127", 1)
        with pytest.raises(StoreIncompatible, match="rejected the user or the password"):
            async with new_system(url, namespace, Desk.using(stage=Stage())):
                raise AssertionError("entered")
        assert network.opened == 1
        assert "wrong" not in str(server.log)


@pytest.mark.parametrize("what", ["password", "right"])
async def test_taken_away_while_it_runs(
    kind: Kind, what: str, namespace: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with server_with_user(kind, tmp_path, namespace) as server, run_network(server.port) as network:
        opened = 0

        async def run() -> None:
            nonlocal opened
            url = network.url.replace("127", "app:secret@127", 1)
            async with new_system(url, namespace, Desk.using(stage=Stage())) as system:
                assert await system.ask(desk(), Work("a")) == "a"
                opened = network.opened
                if what == "right":
                    server.call("ACL", "SETUSER", "app", "-fcall")
                else:
                    server.call("ACL", "SETUSER", "app", "resetpass", ">another")
                    for sort in ("normal", "pubsub"):
                        server.call("CLIENT", "KILL", "TYPE", sort)
                await anyio.sleep_forever()

        with anyio.fail_after(15), pytest.raises(SystemFailed) as failed:
            await run()
        assert isinstance(failed.value.__cause__, StoreIncompatible)
        assert network.opened - opened <= CONNECTIONS_MAX
        assert len(warnings_of(caplog)) <= 5, warnings_of(caplog)


async def test_a_right_to_listen_is_missed_once(
    kind: Kind, namespace: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Replies and doorbells are only hints: without them it works, and is slower."""
    caplog.set_level(logging.WARNING)
    with (
        server_with_user(kind, tmp_path, namespace, "+@pubsub") as server,
        run_network(server.port) as network,
    ):
        url = network.url.replace("127", "app:secret@127", 1)
        async with new_system(url, namespace, Desk.using(stage=Stage())) as owner:
            async with new_system(url, namespace) as sender:
                assert await sender.ask(desk(), Work("remote")) == "remote"
                assert await owner.ask(desk(), Work("here")) == "here"
                opened = network.opened
                # Three listeners, once a second at the most.
                await anyio.sleep(2)
                assert network.opened - opened <= CONNECTIONS_MAX
    told = warnings_of(caplog)
    assert 1 <= len(told) <= 3, told
    assert all("cannot listen to the store" in text and ACL_RULES in text for text in told)
