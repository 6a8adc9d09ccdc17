"""The commands on a real store, with dead letters that a failing handler and a `kill -9` left."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import anyio
import pytest
from rich.status import Status

from atomic_actors._system import ActorSystem
from atomic_actors.base._errors import StoreUnavailable
from atomic_actors.base._records import EntityRef, partition_of
from atomic_actors.tools.cli._operation import StoreOptions, operate
from atomic_actors.tools.cli._screen import Screen, printable
from tests.cli.application import CARD, PARTITIONS, ROOT
from tests.cli.conftest import Command, Store
from tests.servers import Server

UNKNOWN = "account/a-1/" + "0" * 32
LIST_KEYS = [
    "message_id", "kind", "id", "name", "reason", "error_type", "error", "attempts", "interruptions",
    "accepted_at_s", "died_at_s", "replayed_as",
]  # fmt: skip


def letters(command: Command, store: Store, *words: str) -> list[dict[str, Any]]:
    run = command("dead-letters", "list", "--json", *words, *store.options)
    assert run.code == 0, run.errors
    found: list[dict[str, Any]] = json.loads(run.output)
    return found


# Looking.


def test_list_shows_every_letter_and_no_payload(command: Command, store: Store) -> None:
    run = command("dead-letters", "list", *store.options)
    assert run.code == 0
    assert run.errors == ""
    assert max(map(len, run.output.splitlines())) <= 100
    for message_id in (*store.failed, store.interrupted):
        assert message_id in run.output
    assert "4 dead letters\n" in run.output
    assert run.output.count("failed") == 3
    assert "  Pay, 1 attempt; ValueError: the bank [bold]said no\\x1b[2J" in run.output
    assert CARD not in run.output
    assert "\x1b" not in run.output


def test_list_shows_local_times(command: Command, store: Store) -> None:
    run = command("dead-letters", "list", *store.options)
    line = next(line for line in run.output.splitlines() if store.failed[0] in line)
    died = datetime.fromisoformat(line.split()[1])
    assert abs(datetime.now().astimezone() - died) < timedelta(minutes=5)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_list_for_machines(command: Command, store: Store, backend: str) -> None:
    found = letters(command, store, "--backend", backend)
    assert [letter["message_id"] for letter in found] == [store.interrupted, *store.failed]
    assert [list(letter) for letter in found] == [LIST_KEYS] * 4
    assert [letter["reason"] for letter in found] == ["interrupted", "failed", "failed", "failed"]
    assert found[1]["accepted_at_s"] <= found[1]["died_at_s"]
    assert CARD not in json.dumps(found)


def test_list_of_a_kind_and_of_few(command: Command, store: Store) -> None:
    assert [letter["id"] for letter in letters(command, store, "--kind", "parcel")] == ["p-1"]
    assert len(letters(command, store, "--limit", "2")) == 2
    run = command("dead-letters", "list", "--limit", "2", *store.options)
    assert "2 dead letters, the oldest; there are more (--limit)" in run.output
    assert "more" not in command("dead-letters", "list", "--limit", "4", *store.options).output
    run = command("dead-letters", "list", "--kind", "nobody", *store.options)
    assert (run.code, run.output) == (0, "no dead letters of kind nobody\n")


def test_show_has_the_traceback_and_the_payload_when_asked(command: Command, store: Store) -> None:
    run = command("dead-letters", "show", store.failed[0], *store.options)
    assert run.code == 0
    assert "Traceback (most recent call last)" in run.output
    assert "hidden; --payload shows it" in run.output
    assert CARD not in run.output
    assert "\x1b" not in run.output
    run = command("dead-letters", "show", store.failed[0], "--payload", *store.options)
    assert f'"card": "{CARD}"' in run.output


def test_show_for_machines(command: Command, store: Store) -> None:
    words = ("dead-letters", "show", store.failed[0], "--json", *store.options)
    letter = json.loads(command(*words).output)
    assert list(letter) == [*LIST_KEYS, "traceback"]
    assert letter["error_type"] == "ValueError"
    letter = json.loads(command(*words, "--payload").output)
    assert letter["message"] == {"card": CARD}


def test_show_an_interrupted_one(command: Command, store: Store) -> None:
    run = command("dead-letters", "show", store.interrupted, *store.options)
    assert run.code == 0
    assert "interrupted" in run.output
    assert "account/slow" in run.output


def test_show_an_unknown_one(command: Command, store: Store) -> None:
    run = command("dead-letters", "show", UNKNOWN, *store.options)
    assert run.code == 1
    assert run.output == ""
    assert run.errors == f"error: there is no dead letter {UNKNOWN} of account/a-1\n"


def test_audit_balances(command: Command, store: Store) -> None:
    run = command("audit", *store.options)
    assert run.code == 0
    assert "balanced: every accepted message is in exactly one state" in run.output
    report = json.loads(command("audit", "--json", *store.options).output)
    assert report["is_balanced"] is True
    assert (report["failed"], report["interrupted"], report["dead_letters"]) == (3, 1, 4)


def test_where(command: Command, store: Store) -> None:
    words = ("where", "parcel/p-1", *store.options)
    assert ["parked", "yes"] in [line.split() for line in command(*words).output.splitlines()]
    assert json.loads(command(*words, "--json").output) == {
        "kind": "parcel",
        "id": "p-1",
        "partition": partition_of("parcel/p-1", PARTITIONS),
        "waiting": 0,
        "dispatched": 0,
        "is_parked": True,
        "version": 0,
    }


def test_another_number_of_partitions_is_refused(command: Command, store: Store) -> None:
    run = command("audit", "--url", store.url, "--partitions", "5")
    assert run.code == 1
    assert f"has {PARTITIONS} partitions" in run.errors
    assert run.errors.count("\n") == 1


# Changing.


def test_pause_and_resume(command: Command, fresh_store: Store) -> None:
    words = ("account/a-1", *fresh_store.options)
    assert command("pause", *words).output == "account/a-1 is parked now; what is sent to it waits\n"
    assert command("pause", *words).output == "account/a-1 was parked already\n"
    assert json.loads(command("where", "--json", *words).output)["is_parked"]
    assert command("resume", *words).output == "account/a-1 is resumed\n"
    assert command("resume", *words).output == "account/a-1 was not parked\n"
    assert not json.loads(command("where", "--json", *words).output)["is_parked"]


def test_replay(command: Command, fresh_store: Store) -> None:
    account, _, parcel = fresh_store.failed
    run = command("dead-letters", "replay", account, UNKNOWN, parcel, "--at", "head", *fresh_store.options)
    assert run.code == 1
    assert run.errors == f"error: there is no dead letter {UNKNOWN}\n"
    said = run.output.splitlines()
    new = said[0].removeprefix(f"replayed {account} as ")
    assert new.startswith("account/a-1/")
    assert said[1].startswith(f"replayed {parcel} as parcel/p-1/")
    assert said[2:] == ["parcel/p-1 is parked: nothing runs until `atomic-actors resume parcel/p-1`"]
    again = command("dead-letters", "replay", account, *fresh_store.options)
    assert (again.code, again.output) == (0, f"{account} was replayed before, as {new}\n")
    assert json.loads(command("audit", "--json", *fresh_store.options).output)["enqueued"] == 2
    assert letters(command, fresh_store)[0]["replayed_as"] == new
    assert "replayed" in command("dead-letters", "list", *fresh_store.options).output


def test_purge_by_id(command: Command, fresh_store: Store) -> None:
    first, second, third = fresh_store.failed
    words = ("dead-letters", "purge", first, second, "--yes", *fresh_store.options)
    assert command(*words).output == "purged 2 dead letters\n"
    assert [letter["message_id"] for letter in letters(command, fresh_store)] == [third]
    run = command(*words)
    assert run.code == 1
    assert run.output == "purged 0 dead letters\n"
    assert run.errors.count("there is no dead letter") == 2


def test_purge_a_kind_then_all(command: Command, fresh_store: Store) -> None:
    words = ("dead-letters", "purge", "--all", "--yes", *fresh_store.options)
    assert command(*words, "--kind", "account").output == "purged 2 dead letters\n"
    assert [letter["kind"] for letter in letters(command, fresh_store)] == ["parcel"]
    assert command(*words).output == "purged 1 dead letter\n"
    assert command(*words).code == 0
    assert command("audit", *fresh_store.options).code == 0


def test_purge_asks_nobody_without_a_terminal(command: Command, fresh_store: Store) -> None:
    run = command("dead-letters", "purge", "--all", *fresh_store.options)
    assert run.code == 2
    assert "--yes" in run.errors
    assert len(letters(command, fresh_store)) == 3


class Terminal:
    """The command with a terminal of its own, up to its question."""

    def __init__(self, *words: str) -> None:
        self._mine, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "atomic_actors", *words],
            cwd=ROOT / "src",
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self.text = ""
        while "[y/N]" not in self.text:
            part = os.read(self._mine, 4096)
            assert part, self.text
            self.text += part.decode()

    def type(self, text: str) -> None:
        os.write(self._mine, text.encode())

    def end(self) -> int:
        with suppress(OSError):
            while part := os.read(self._mine, 4096):
                self.text += part.decode()
        os.close(self._mine)
        return self.process.wait(20)


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 1), ("\n", 1, 3), ("no\n", 1, 3)])
def test_purge_asks_on_a_terminal(
    command: Command, fresh_store: Store, answer: str, code: int, left: int
) -> None:
    terminal = Terminal("dead-letters", "purge", "--all", "--kind", "account", *fresh_store.options)
    assert "Purge 2 dead letters, 2 of them never replayed?" in terminal.text
    terminal.type(answer)
    assert terminal.end() == code, terminal.text
    assert len(letters(command, fresh_store)) == left


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_at_the_question_changes_nothing(
    command: Command, fresh_store: Store, backend: str, number: signal.Signals, code: int
) -> None:
    terminal = Terminal("dead-letters", "purge", "--all", "--backend", backend, *fresh_store.options)
    terminal.process.send_signal(number)
    assert terminal.end() == code, terminal.text
    assert "Traceback" not in terminal.text
    assert f"stopped by {number.name}" in terminal.text
    assert len(letters(command, fresh_store)) == 3


# A store over the network.


def test_an_audit_that_does_not_balance_is_1(command: Command, valkey_server: Server) -> None:
    options = ("--url", valkey_server.url, "--namespace", "unbalanced", "--partitions", "2")
    assert command("audit", *options).code == 0
    valkey_server.call("HSET", "{unbalanced:default:1}:C", "accepted", "7")
    run = command("audit", *options)
    assert run.code == 1
    assert "NOT balanced:\n  partition 1: accepted 7, but 0 wait or run and 0 ended" in run.output
    report = json.loads(command("audit", "--json", *options).output)
    assert report["is_balanced"] is False
    assert len(report["problems"]) == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_store_that_goes_away_ends_the_command(
    valkey_server: Server, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOMIC_ACTORS_STORE_TIMEOUT_S", "0.3")
    options = StoreOptions(url=valkey_server.url, namespace="gone", partitions=2, backend=backend)

    async def work(system: ActorSystem) -> None:
        os.kill(valkey_server.pid, signal.SIGSTOP)
        await system.where(EntityRef("account", "a-1"))

    try:
        with pytest.raises(StoreUnavailable, match="no answer from redis://127"):
            operate(options, Screen(), work)
    finally:
        os.kill(valkey_server.pid, signal.SIGCONT)


# The screen.


def test_control_characters_are_escaped() -> None:
    assert printable("a\x1b[2J\u202eb\r\n\tü") == "a\\x1b[2J\\u202eb\\r\n\tü"


def test_json_escapes_what_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"a": "\x1b\x9b\u202e\U000e0001ü"}
    Screen().json(value)
    output = capsys.readouterr().out
    assert json.loads(output) == value
    assert all(letter.isprintable() or letter == "\n" for letter in output)


def test_a_status_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen().status("reading") as status:
        assert isinstance(status, Status)
        anyio.run(anyio.sleep, 0.2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
