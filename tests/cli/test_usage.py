"""The command line itself: what is wrong with a command, and stores that are not there."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from atomic_actors.tools.cli import main
from tests.cli.application import ROOT
from tests.cli.conftest import Command

UNIQUE = "0" * 32


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["frob"], "frob"),
        (["audit", "--frob"], "--frob"),
        (["audit", "--partitions", "many"], "--partitions"),
        (["audit", "--partitions", "0"], "partitions"),
        (["audit", "--backend", "curio"], "curio"),
        (["audit", "--url", "mysql://here"], "redis://host:6379"),
        (["audit", "--url", "memory:"], "one process"),
        (["audit", "--namespace", "a b"], "namespace"),
        (["where"], "KIND/ID"),
        (["where", "account"], "kind/id"),
        (["pause", "account"], "kind/id"),
        (["resume", "/a"], "kind"),
        (["dead-letters", "show", "a/b"], "32 hex digits"),
        (["dead-letters", "list", "--limit", "0"], "--limit"),
        (["dead-letters", "list", "--kind", "a b"], "kind"),
        (["dead-letters", "replay"], "name the dead letters"),
        (["dead-letters", "replay", "a/b"], "32 hex digits"),
        (["dead-letters", "replay", f"a/b/{UNIQUE}", "--at", "middle"], "middle"),
        (["dead-letters", "purge", "--yes"], "--all"),
        (["dead-letters", "purge", "--yes", "--kind", "account"], "--all"),
        (["dead-letters", "purge", "--yes", "--all", f"a/b/{UNIQUE}"], "--all"),
        (["run"], "MODULE:NAME"),
        (["run", "shop"], "package.module:name"),
        (["run", "shop:a b"], "package.module:name"),
        (["run", "shop:system", "--workers", "-1"], "--workers"),
        (["run", "shop:system", "--workers", "many"], "--workers"),
        (["run", "shop:system", "--workers", "1025"], "1024"),
        (["run", "shop:system", "--start-timeout", "0"], "--start-timeout"),
        (["run", "shop:system", "--uvloop", "--backend", "trio"], "asyncio"),
        (["nodes", "drain"], "name the node"),
        (["nodes", "drain", "n", "--all"], "name the node"),
        (["nodes", "drain", "n", "--timeout", "-1"], "--timeout"),
        (["demo", "--kill", "-1"], "--kill"),
        (["demo", "--workers", "0"], "--workers"),
        (["demo", "--limit", "0"], "--limit"),
        (["demo", "--url", "memory:"], "memory:"),
    ],
    ids=str,
)
def test_a_wrong_command_is_2(command: Command, words: list[str], said: str) -> None:
    run = command(*words)
    assert run.code == 2
    assert run.output == ""
    assert run.errors.startswith("error: ")
    assert run.errors.count("\n") == 1
    assert said in run.errors


def test_an_unknown_variable_is_2(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOMIC_ACTORS_PARTITION", "3")
    run = command("config")
    assert run.code == 2
    assert "did you mean ATOMIC_ACTORS_PARTITIONS?" in run.errors


def test_help_and_version(command: Command) -> None:
    assert "dead-letters" in command().output
    assert "replay" in command("dead-letters").output
    run = command("--help")
    assert run.code == 0
    assert max(map(len, run.output.splitlines())) <= 100
    assert command("--version").output.strip() == "0.1.0"


def test_python_dash_m() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "atomic_actors", "where"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "src",
    )
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")


# Stores that are not there.


def test_looking_does_not_make_an_embedded_store(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["audit"], ["dead-letters", "list"], ["where", "a/b"], ["pause", "a/b"], ["resume", "a/b"]):
        run = command(*words)
        assert run.code == 1
        assert f"there is no directory {tmp_path / '.atomic-actors'}" in run.errors
        assert run.errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_is_no_embedded_store(command: Command, tmp_path: Path) -> None:
    run = command("audit", "--url", f"embedded://{tmp_path}")
    assert run.code == 1
    assert f"{tmp_path} holds no embedded store" in run.errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_store_that_is_away(command: Command, backend: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        run = command("audit", "--backend", backend, "--url", f"redis://u:secret@127.0.0.1:{port}")
    assert run.code == 1
    assert run.errors.startswith(f"error: no answer from redis://u@127.0.0.1:{port}/0: ")
    assert run.errors.count("\n") == 1
    assert "secret" not in run.errors


def test_a_store_that_never_answers() -> None:
    # In a process of its own: here the test runner would take the log records that must not show.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        run = subprocess.run(
            [sys.executable, "-m", "atomic_actors", "where", "a/b", "--url", url],
            cwd=ROOT / "src",
            capture_output=True,
            text=True,
            check=False,
            timeout=25,
        )
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: no answer from {url}/0: ")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_control_c_while_a_store_does_not_answer(backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-m", "atomic_actors", "audit", "--url", url, "--backend", backend],
            cwd=ROOT / "src",
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(100)
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors == "error: stopped by SIGINT\n"


# Settings.


def test_config_shows_what_holds_and_no_secrets(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOMIC_ACTORS_URL", "redis://u:secret@here:7000/3")
    monkeypatch.setenv("ATOMIC_ACTORS_LEASE_TTL_S", "3")
    run = command("config", "--namespace", "shop")
    assert run.code == 0
    lines = {line.split()[0]: line.split() for line in run.output.splitlines()}
    assert lines["store"][1] == "redis://u@here:7000/3"
    assert lines["url"][1:] == ["redis://u:***@here:7000/3", "ATOMIC_ACTORS_URL"]
    assert lines["lease_ttl_s"][1:] == ["3.0", "ATOMIC_ACTORS_LEASE_TTL_S"]
    assert lines["namespace"][1:] == ["shop", "--namespace"]
    assert lines["partitions"][1:] == ["64", "default"]
    assert "secret" not in run.output
    assert max(map(len, run.output.splitlines())) <= 100


def test_config_as_json_hides_the_password(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOMIC_ACTORS_HOST", "here")
    monkeypatch.setenv("ATOMIC_ACTORS_PASSWORD", "secret")
    run = command("config", "--json")
    settings = json.loads(run.output)
    assert settings["store"] == "redis://here:6379/0"
    assert settings["password"] == "***"
    assert "secret" not in run.output


def test_a_url_wins_over_the_parts_in_the_environment(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"HOST": "here", "PORT": "1", "DB": "2", "PASSWORD": "secret"}.items():
        monkeypatch.setenv(f"ATOMIC_ACTORS_{name}", text)
    far = json.loads(command("config", "--json", "--url", "redis://there").output)
    assert (far["store"], far["password"]) == ("redis://there:6379/0", "***")
    near = json.loads(command("config", "--json", "--url", "embedded:d").output)
    assert (near["store"], near["password"]) == ("embedded:d", None)


# The demo.


def test_the_demo_runs(command: Command, tmp_path: Path) -> None:
    run = command("demo", "--directory", str(tmp_path / "d"), "--limit", "300", "--kills", "0")
    assert run.code == 0
    assert "nothing lost" in run.output
    listed = command(
        "audit", "--url", f"embedded://{tmp_path / 'd' / 'store'}", "--namespace", "demo", "--json"
    )
    assert listed.code == 0
    assert json.loads(listed.output)["is_balanced"]


def test_main_reads_the_words_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["atomic-actors", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.strip() == "0.1.0"
