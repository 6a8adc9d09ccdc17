"""The embedded server's process and files: blocking calls, each short; `_embedded` puts them in order.

Three locks keep one server per directory, all of them `flock`s, because the kernel drops those together
with the process that held them:

- `server.lock` serialises starting, joining, leaving and stopping; whatever decides holds it;
- `users/<pid>-<random>` is held by each process that joined, so one that crashed does not count;
- `server.alive` is held by the *server*, which inherits it when it is started. Whether a server may
  still write to the append-only file is therefore a question to the kernel, not to a pid file, and a
  second server is never started on the same data, even if the first one hangs.

`server.json` records who the server is (pid and start time, socket, version); it is written only
under `server.lock`, and once more without a pid before each start. Only a server that answers on the
socket, and says that its data directory is ours, is ever told to stop.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import redis
from attrs import asdict, define, evolve, field, frozen
from redis.backoff import NoBackoff
from redis.retry import Retry

from atomic_actors.base._errors import EmbeddedServerError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

#: The room for a path in `sockaddr_un`, less the final zero byte.
MAX_SOCKET_PATH_BYTES: Final = 103 if sys.platform == "darwin" else 107
ANSWER_TIMEOUT_S: Final = 1.0
#: What may lie in a directory that is still free for us to take.
_HARMLESS_NAMES: Final = frozenset({"lost+found", ".gitignore", ".gitkeep", ".DS_Store"})

_logger = logging.getLogger("atomic_actors.embedded")


@frozen(kw_only=True)
class Record:
    """What `server.json` holds. `pid` is 0 while a start is under way."""

    socket_path: str
    binary: str = ""
    pid: int = 0
    #: Boot, pid namespace and start time: with the pid it names one process for ever.
    stamp: str = ""
    #: The last server that ran on this data, such as "valkey 9.1.2".
    server: str = ""


@frozen(kw_only=True)
class Answer:
    """The answer of the server on the socket."""

    socket_path: str
    pid: int
    server: str
    loading: bool
    loaded_bytes: int


@frozen
class Files:
    """The files of one embedded server, all below `directory` (absolute, without symbolic links)."""

    directory: Path

    @property
    def lock(self) -> Path:
        """Held by the process that decides."""
        return self.directory / "server.lock"

    @property
    def alive(self) -> Path:
        """Held by the server while it lives."""
        return self.directory / "server.alive"

    @property
    def users(self) -> Path:
        """One locked file for each process that joined."""
        return self.directory / "users"

    @property
    def record(self) -> Path:
        """Who the server is."""
        return self.directory / "server.json"

    @property
    def config(self) -> Path:
        """The server's settings, written anew for each start."""
        return self.directory / "server.conf"

    @property
    def log(self) -> Path:
        """The server's answer."""
        return self.directory / "server.log"

    @property
    def data(self) -> Path:
        """The append-only files."""
        return self.directory / "data"


# Paths.


def choose_socket_path(directory: Path) -> Path:
    """Take the socket in the directory, or a short one below the temporary directory if that is too long."""
    path = directory / "server.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
        return path
    digest = sha256(os.fsencode(directory)).hexdigest()[:16]
    short = Path(tempfile.gettempdir(), f"atomic-actors-{os.geteuid()}-{digest}", "server.sock")
    if len(os.fsencode(short)) > MAX_SOCKET_PATH_BYTES:
        raise EmbeddedServerError(
            f"the socket path {path} is longer than the {MAX_SOCKET_PATH_BYTES} bytes a Unix socket may have,"
            f" and so is {short}; choose a shorter directory, or set TMPDIR to a shorter one"
        )
    return short


def files_of(directory: Path | str) -> Files:
    """Name the files of a directory; refuse systems that cannot run the server."""
    if sys.platform == "win32" or not hasattr(socket, "AF_UNIX"):
        raise EmbeddedServerError(
            "the embedded server does not run on Windows; start a Valkey or Redis server elsewhere (WSL, a"
            " container) and set url='redis://host:6379'"
        )
    return Files(Path(os.path.realpath(directory)))


@contextmanager
def explained(doing: str, path: Path) -> Generator[None]:
    """Turn an `OSError` into an `EmbeddedServerError` that names the path and what helps."""
    try:
        yield
    except OSError as error:
        remedy = "name a directory that this user can write to, on a local disk"
        if error.errno == errno.ENOSPC:
            remedy = "the disk is full: free some space and start again"
        raise EmbeddedServerError(f"cannot {doing} {path}: {error.strerror or error}; {remedy}") from error


def own(directory: Path) -> None:
    """Make `directory` exist, ours and closed to others."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise EmbeddedServerError(f"{directory} is not a directory; remove it or name another directory")
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        raise EmbeddedServerError(
            f"{directory} belongs to user {status.st_uid}, and this process is user {os.geteuid()}; run as"
            " that user or name another directory"
        )
    if status.st_mode & 0o077:
        directory.chmod(0o700)


def prepare_directory(files: Files) -> None:
    """Make the directory and what is always in it; refuse one that holds other things."""
    directory = files.directory
    if directory.exists() and not directory.is_dir():
        raise EmbeddedServerError(f"{directory} is a file, not a directory; name another directory")
    with explained("use the directory", directory):
        # Changing the mode of a user's own directory would be unexpected.
        if directory.exists() and not files.lock.exists():
            names = {entry.name for entry in directory.iterdir()} - _HARMLESS_NAMES
            if names and not files.lock.exists():
                raise EmbeddedServerError(
                    f"{directory} holds other files ({', '.join(sorted(names)[:3])}); name an empty or new"
                    " directory for the embedded server"
                )
        own(directory)
        files.lock.touch(mode=0o600)
        own(files.users)
        own(files.data)
        ignore = directory / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")


# Locks.


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file; False if another process has locked it."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_lock(files: Files) -> int:
    """Open `server.lock`; the caller locks it and calls `unlock`."""
    with explained("open", files.lock):
        return os.open(files.lock, os.O_RDWR | os.O_CLOEXEC)


def unlock(descriptor: int) -> None:
    """Unlock and close."""
    # An explicit unlock frees the lock even if a child that is being forked holds a copy.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@define(eq=False)
class User:
    """This process' entry among those that use the server; it counts as long as `descriptor` is locked."""

    files: Files
    descriptor: int | None = field(default=None, init=False)
    path: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.path = self.files.users / f"{os.getpid()}-{secrets.token_hex(6)}"

    def join(self) -> None:
        """Enter; call with `server.lock` held, or another process may sweep the file before it is locked."""
        if self.descriptor is not None:
            return
        with explained("write", self.path):
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try_lock(self.descriptor)

    def leave(self) -> None:
        """Stop counting; needs no lock and may be called twice."""
        if self.descriptor is not None:
            self.path.unlink(missing_ok=True)
            unlock(self.descriptor)
            self.descriptor = None


def sweep_users(files: Files) -> int:
    """Count the processes that use the server; remove the entries of crashed ones. Needs `server.lock`."""
    users = 0
    with explained("read", files.users):
        for path in files.users.iterdir():
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if try_lock(descriptor):
                path.unlink(missing_ok=True)
                unlock(descriptor)
            else:
                os.close(descriptor)
                users += 1
    return users


# Who the server is.


def _process_scope() -> str:
    """Name the boot and the pid namespace in which pids mean something; "" where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Tell when the process was started, in whatever unit the system uses; "" if it is gone."""
    if sys.platform.startswith("linux"):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if fields[0] in "ZX" else fields[19]
    listed = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False, timeout=5
    )
    state, _, started = listed.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()


def _stamp(pid: int) -> str:
    return f"{_process_scope()} {_process_start(pid)}"


def _is_gone(record: Record) -> bool:
    """Whether the recorded process has certainly ended; False if that is not known here."""
    return bool(
        record.pid and record.stamp.startswith(_process_scope() + " ") and _stamp(record.pid) != record.stamp
    )


def read_record(files: Files) -> Record | None:
    """Read `server.json`; None if there is none, or none that makes sense."""
    try:
        values: Any = json.loads(files.record.read_text())
        return Record(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        # A torn or foreign file: the locks and the socket give the same answer, more slowly.
        _logger.warning("ignoring %s: it is not a server record", files.record)
        return None


def write_record(files: Files, record: Record) -> None:
    """Replace `server.json` in one step; needs `server.lock`."""
    with explained("write", files.record):
        new = files.record.with_suffix(".json.new")
        new.write_text(json.dumps(asdict(record)))
        os.replace(new, files.record)


def is_alive(files: Files, record: Record | None) -> bool:
    """Whether a server that we started may still be there, by its lock."""
    with explained("open", files.alive):
        try:
            descriptor = os.open(files.alive, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            if try_lock(descriptor, shared=True):
                return False
        finally:
            os.close(descriptor)
    # A child of a killed server that still rewrites the log holds the lock too, and is harmless.
    return record is None or not _is_gone(record)


def _client(socket_path: str) -> redis.Redis:
    return redis.Redis(
        unix_socket_path=socket_path,
        socket_timeout=ANSWER_TIMEOUT_S,
        socket_connect_timeout=ANSWER_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        encoding_errors="surrogateescape",
        protocol=2,
    )


def _ask(files: Files, socket_path: str) -> Answer | None:
    """Ask the server on the socket for its identity; None if there is no answer.

    Raises:
        EmbeddedServerError: The server that answers is not the one of this directory.
    """
    foreign = f"a server that is not ours answers on {socket_path}"
    remedy = "stop it, or name another directory for the embedded server"
    with _client(socket_path) as client:
        call = cast("Callable[..., Any]", client.execute_command)  # pyright: ignore[reportUnknownMemberType]
        try:
            directory: str = call("CONFIG GET", "dir")["dir"]
            information: dict[str, Any] = {**call("INFO", "server"), **call("INFO", "persistence")}
            pid = int(information["process_id"])
        except redis.AuthenticationError as error:
            raise EmbeddedServerError(f"{foreign} ({error}); {remedy}") from error
        except (redis.ConnectionError, redis.TimeoutError):
            return None
        except (redis.RedisError, LookupError, TypeError, ValueError) as error:
            raise EmbeddedServerError(f"{foreign} ({error!r}); {remedy}") from error
    if os.path.realpath(directory) != os.fspath(files.data):
        raise EmbeddedServerError(f"{foreign}: process {pid} with its data in {directory}; {remedy}")
    name = information.get("server_name", "redis")
    version = information.get(f"{name}_version", information.get("redis_version", "?"))
    return Answer(
        socket_path=socket_path,
        pid=pid,
        server=f"{name} {version}",
        loading=bool(int(information.get("loading", 0))),
        loaded_bytes=int(information.get("loading_loaded_bytes", 0)),
    )


def _listens(socket_path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        try:
            connection.connect(socket_path)
        except TimeoutError:
            return True
        except OSError:
            return False
    return True


def inspect_server(files: Files) -> tuple[bool, Answer | None]:
    """Tell whether a server of ours may be alive, and what it answers."""
    record = read_record(files)
    if is_alive(files, record):
        at = record.socket_path if record else os.fspath(choose_socket_path(files.directory))
        return True, _ask(files, at)
    # What is here now is a stale socket, a foreign server, or ours on a file system that lost the lock.
    at = os.fspath(choose_socket_path(files.directory))
    return (True, _ask(files, at)) if _listens(at) else (False, None)


# Starting.


def note(files: Files, answer: Answer) -> None:
    """Record who answers; needs `server.lock`, so that a late writer cannot name a server of before."""
    record = read_record(files) or Record(socket_path=answer.socket_path)
    write_record(files, evolve(record, pid=answer.pid, stamp=_stamp(answer.pid), server=answer.server))


# Leaving.


def shut_down(answer: Answer) -> None:
    """Tell the server to end; it does so on its own time."""
    with _client(answer.socket_path) as client:
        call = cast("Callable[..., Any]", client.execute_command)  # pyright: ignore[reportUnknownMemberType]
        try:
            # No snapshot is wanted; the append-only file is flushed and synced in any case.
            call("SHUTDOWN", "NOSAVE")
        except (redis.ConnectionError, redis.TimeoutError):
            return  # the usual answer of a server that ends
        except redis.ResponseError as error:
            raise EmbeddedServerError(
                f"the server on {answer.socket_path} refuses to stop: {error}"
            ) from error
