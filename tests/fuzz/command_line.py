"""Odd words on the command line: a clean run, or an exit code with one line that says why; never a traceback.

Nothing here reaches a store: each one that is named is not there, or cannot be one. `run` and `demo`, which start
processes, always get an option that does not exist.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Final
from unittest.mock import patch

from atomic_actors.tools.cli import main
from tests.fuzz.corrupter import EXTREME_NUMBERS, corrupt_text
from tests.fuzz.decoders import UNIQUE
from tests.fuzz.effort import Broken, Target

__all__ = ("COMMAND_LINE",)

_COMMANDS: Final[tuple[tuple[str, ...], ...]] = (
    *(
        (),
        ("audit",),
        ("where",),
        ("pause",),
        ("resume",),
        ("counts",),
        ("config",),
        ("nodes",),
        ("partitions",),
    ),
    *(("dead-letters",), ("dead-letters", "list"), ("dead-letters", "show"), ("dead-letters", "purge")),
    *(("dead-letters", "replay"), ("nodes", "drain"), ("nodes", "list"), ("run",), ("demo",), ("frob",)),
)
_OPTIONS: Final = (
    *(
        "--url",
        "--namespace",
        "--service",
        "--partitions",
        "--backend",
        "--json",
        "--kind",
        "--limit",
        "--yes",
    ),
    *(
        "--all",
        "--at",
        "--payload",
        "--timeout",
        "--help",
        "--version",
        "--no-json",
        "--workers",
        "--",
        "-",
        "-x",
    ),
)
_WORDS: Final = (
    *(
        "account",
        "account/a-1",
        f"account/a-1/{UNIQUE}",
        "shop:system",
        "5",
        "0",
        "-1",
        "head",
        "tail",
        "trio",
    ),
    *(
        "asyncio",
        "default",
        "a b",
        "",
        "true",
        "--limit=3",
        "{}",
        "[1]",
        "%s",
        "[bold]x[/]",
        "[/]",
        "\x1b[31m",
    ),
    *(str(number) for number in EXTREME_NUMBERS),
)
_URLS: Final = (
    *(
        "embedded:nothing-here",
        "embedded:///nothing/here",
        "memory:",
        "mysql://here",
        "redis://",
        "redis://h:x",
    ),
    *("redis+sentinel://h", "redis+cluster://h/3", "unix://", "redis://user:secret@", "://", "embedded:?a=b"),
)


def _word(random: Random) -> str:
    form = random.randrange(6)
    if form <= 2:
        return random.choice(_WORDS)
    if form == 3:
        return random.choice(_OPTIONS)
    # No system hands over a word with a null byte in it.
    return corrupt_text(random, _WORDS).replace("\0", "0")[:2_000]


def _words(random: Random) -> list[str]:
    command = random.choice(_COMMANDS)
    words: list[str] = list(command)
    for _ in range(random.randrange(5)):
        words.append(_word(random))
        if words[-1] == "--url":
            words.append(random.choice(_URLS))
    words = [word for word in words if not word.startswith("--url=")]
    if words[:1] in (["run"], ["demo"]) or "run" in words or "demo" in words:
        words.insert(1, "--no-such-option")
    if "--url" not in words and random.random() < 0.7:
        words += ["--url", random.choice(_URLS)]
    return words


@contextmanager
def _somewhere() -> Generator[tuple[io.BytesIO, io.BytesIO]]:
    """An empty directory, a bare environment, and streams such as a terminal has."""
    bare = {name: text for name, text in os.environ.items() if not name.startswith("ATOMIC_ACTORS_")}
    output, errors = io.BytesIO(), io.BytesIO()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as directory, patch.dict(os.environ, bare, clear=True):
        os.chdir(directory)
        streams = sys.stdout, sys.stderr
        sys.stdout = io.TextIOWrapper(output, "utf-8", "strict", write_through=True)
        sys.stderr = io.TextIOWrapper(errors, "utf-8", "backslashreplace", write_through=True)
        try:
            yield output, errors
        finally:
            sys.stdout, sys.stderr = streams
            os.chdir(before)


def _attempt(random: Random) -> None:
    words = _words(random)
    with _somewhere() as (output, errors):
        try:
            code = main(words)
        except BaseException as error:
            raise Broken("the command line let an error escape", words, error) from error
        said, shown = errors.getvalue().decode(), output.getvalue().decode()
    if code not in (0, 1, 2) or "Traceback" in said + shown:
        raise Broken(f"exit code {code}, and {said!r}", words)
    if code and (not said.startswith("error: ") or said.count("\n") != 1):
        raise Broken(f"exit code {code}, and {said!r}", words)


COMMAND_LINE: Final = Target("command-line", _attempt, 60)
