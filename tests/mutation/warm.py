"""A process that has imported and collected the tests, and forks to run some of them on a mutant.

All that comes before the first test takes longer than most mutants live. A mutant of the Lua library changes nothing in
Python, and one of a Python function can be loaded after the fork.
"""

from __future__ import annotations

import importlib
import os
import re
import select
import signal
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Final, Self

import msgspec
import pytest
from attrs import define, field, frozen

from tests.mutation.mutant import Suite
from tests.mutation.stage import DIFFERENTIAL, WIRE, WITHOUT_SERVER, Selection
from tests.mutation.trees import WARM, CannotTell, enter_tree, pytest_options

TARGETS: Final = (str(Suite.STORE), WITHOUT_SERVER, WIRE, DIFFERENTIAL)
#: Of one run: the slowest takes a tenth of that on an idle machine.
RUN_TIMEOUT_S: Final = 600.0
STOP_TIMEOUT_S: Final = 30.0

#: What is said of a program that cannot run at all: that would show nothing of the guard.
_BROKEN: Final = re.compile(
    r"Error (?:compiling|registering) function|attempt to (?:index|call|compare|concatenate|perform)"
    r"|SyntaxError|ImportError|NameError|AttributeError"
)
#: What is said of a test that took too long: because of the mutant, or of a machine that is too busy.
_HUNG: Final = re.compile(r"^E? *(?:Failed: Timeout|TimeoutError)", re.MULTILINE)


@frozen
class TestRun:
    """How a run of some tests ended.

    Args:
        failed: the test that failed; "" if all passed.
        ran: whether there was any test to run.
        took_s: how long it took.
        hung: whether the test that failed did because it waited in vain.
    """

    __test__ = False

    failed: str
    ran: bool
    took_s: float
    hung: bool


class Request(msgspec.Struct):
    """What a fork is to do.

    Args:
        selection: the tests.
        module: the Python module that has a broken function; "" for none.
        function: the function.
    """

    selection: Selection
    module: str = ""
    function: str = ""


def _codes(code: CodeType, name: str) -> Generator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_name == name:
                yield constant
            yield from _codes(constant, name)


def _functions(module: ModuleType, name: str) -> Generator[FunctionType]:
    for scope in (module, *(value for value in vars(module).values() if isinstance(value, type))):
        found = vars(scope).get(name)
        if isinstance(found, FunctionType) and found.__module__ == module.__name__:
            yield found


def load_function(module_name: str, name: str) -> None:
    """Give a function, wherever it is used, the code that its source file has now."""
    module = importlib.import_module(module_name)
    path = Path(str(module.__file__))
    (code,) = _codes(compile(path.read_text("utf-8"), str(path), "exec"), name)
    (function,) = _functions(module, name)
    function.__code__ = code


class Answer(msgspec.Struct):
    """What a fork says of its tests."""

    ran: int = 0
    failed: str = ""
    text: str = ""


@define(eq=False)
class Forker:
    """A pytest plugin: instead of running what was collected, it runs what it is asked for, in forks."""

    connection: Connection
    answer: Answer = field(factory=Answer)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.connection.send_bytes(b"ready")
        while request := self.connection.recv_bytes():
            self.connection.send_bytes(self._fork(session, msgspec.json.decode(request, type=Request)))
        return True

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.answer.ran += report.when == "call"
        if report.failed and not self.answer.failed:
            self.answer.failed, self.answer.text = report.nodeid, report.longreprtext

    def _fork(self, session: pytest.Session, request: Request) -> bytes:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            try:
                items = [item for item in session.items if request.selection.takes(item.nodeid)]
                if request.module:
                    load_function(request.module, request.function)
                self._run(session, items)
                os.write(writing, msgspec.json.encode(self.answer))
            except BaseException:
                traceback.print_exc()
            finally:
                # What a mutant left behind is worth no orderly end.
                os._exit(0)
        os.close(writing)
        answer = b""
        with open(reading, "rb", buffering=0) as pipe:
            deadline_s = time.monotonic() + RUN_TIMEOUT_S
            while select.select([pipe], [], [], max(deadline_s - time.monotonic(), 0))[0]:
                if not (part := pipe.read(65536)):
                    break
                answer += part
            else:
                # Asked nicely, pytest ends the servers of its fixtures.
                os.kill(child, signal.SIGINT)
        os.waitpid(child, 0)
        return answer

    def _run(self, session: pytest.Session, items: Sequence[pytest.Item]) -> None:
        try:
            for item, following in zip(items, [*items[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.answer.failed:
                    break
        finally:
            # Ends the fixtures that are still there, and with them the server.
            session.config.hook.pytest_sessionfinish(session=session, exitstatus=0)


def _serve(tree: str, output: str, connection: Connection) -> None:
    """The life of the process."""
    enter_tree(tree, output)
    command = [*pytest_options(tree), "-k", "(asyncio or long_walk) and not installed", *TARGETS]
    pytest.main(command, plugins=[Forker(connection)])
    os._exit(0)


class WarmTests:
    """The tests in one tree, ready to run. Enter it to start the process.

    Args:
        tree: the tree.
    """

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self._words = tree.with_suffix(".txt")
        self._ours, self._theirs = WARM.Pipe()
        self._process = WARM.Process(target=_serve, args=(str(tree), str(self._words), self._theirs))

    def __enter__(self) -> Self:
        self._process.start()
        # So that the end of the process is heard.
        self._theirs.close()
        if not self._ours.poll(RUN_TIMEOUT_S) or not self._receive():
            self._process.kill()
            raise CannotTell(f"nothing was collected; pytest said {self._words.read_text()[-1500:]}")
        return self

    def _receive(self) -> bytes:
        try:
            return self._ours.recv_bytes()
        except EOFError:
            return b""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._ours.send_bytes(b"")
        self._process.join(STOP_TIMEOUT_S)
        self._process.kill()

    def run(self, request: Request) -> TestRun:
        """Run tests on the tree as it is now, until the first one fails.

        Raises:
            CannotTell: the run did not end, or a test failed because the mutant is no program.
        """
        began_s = time.monotonic()
        self._ours.send_bytes(msgspec.json.encode(request))
        reply = self._receive()
        if not reply:
            said = self._words.read_text(errors="replace")[-1500:]
            raise CannotTell(f"{request.selection} did not end; pytest said {said}")
        answer = msgspec.json.decode(reply, type=Answer)
        if answer.failed and _BROKEN.search(answer.text):
            raise CannotTell(f"{answer.failed} says {answer.text[-1500:]}")
        hung = bool(answer.failed and _HUNG.search(answer.text))
        return TestRun(answer.failed, answer.ran > 0, time.monotonic() - began_s, hung)
