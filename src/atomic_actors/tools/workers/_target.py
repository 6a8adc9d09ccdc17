"""Finds what `package.module:system` names, and makes an actor system of it."""

from __future__ import annotations

import importlib
import inspect
import traceback
from types import TracebackType
from typing import Any, Final

from atomic_actors._system import ActorSystem
from atomic_actors.base._config import Config
from atomic_actors.base._errors import AtomicActorsError, UsageError

__all__ = ("EXIT_FAILED", "EXIT_MISUSED", "CannotServe", "load_target", "make_system", "split_target")

EXIT_FAILED: Final = 1
EXIT_MISUSED: Final = 2
EXPECTED: Final = "an ActorSystem, a Config, or a function without arguments that returns one of them"


class CannotServe(Exception):
    """There is nothing to serve; the text says why, in one line."""

    def __init__(self, text: str, code: int = EXIT_MISUSED, traceback: str = "") -> None:
        super().__init__(text)
        self.code = code
        #: Where it happened, for an error of the user's own code.
        self.traceback = traceback


def split_target(target: str) -> tuple[str, str]:
    """The module and the name in it, of `package.module:name`.

    Raises:
        CannotServe: it is written differently.
    """
    module, colon, name = target.partition(":")
    parts = [*module.split("."), *name.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise CannotServe(
            f"{target!r} does not name a system; write package.module:name, such as shop.app:system"
        )
    return module, name


def load_target(target: str) -> Any:
    """Import the module and find the name in it.

    Raises:
        CannotServe: there is no such module or name, or the module fails to import.
    """
    module_name, name = split_target(target)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise CannotServe(
                f"there is no module {missing!r}; run the command where it can be imported from, or set PYTHONPATH"
            ) from None
        raise _failed(f"importing {module_name}", error) from error
    # Whatever the user's code raises, `SystemExit` among it.
    except BaseException as error:
        raise _failed(f"importing {module_name}", error) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise CannotServe(f"the module {module_name} has no {name!r}; it should be {EXPECTED}")
        found = getattr(found, part)
    return found


async def make_system(target: str, found: Any) -> ActorSystem:
    """The system that `found` is, describes or returns; not entered yet.

    Raises:
        CannotServe: it is nothing of that kind, its function fails, or its settings cannot work.
    """
    if not isinstance(found, (ActorSystem, Config)) and callable(found):
        try:
            found = found()
            if inspect.isawaitable(found):
                found = await found
        except UsageError as error:
            raise CannotServe(f"{target}: {error}") from error
        except AtomicActorsError as error:
            raise CannotServe(f"{target}: {error}", EXIT_FAILED) from error
        except Exception as error:
            raise _failed(f"calling {target}", error) from error
    if isinstance(found, Config):
        try:
            found = ActorSystem(found)
        except UsageError as error:
            raise CannotServe(f"{target}: {error}") from error
    if not isinstance(found, ActorSystem):
        raise CannotServe(f"{target} is {_described(found)}; it should be {EXPECTED}")
    return found


def _described(found: object) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"


def _failed(doing: str, error: BaseException) -> CannotServe:
    """What the user's own code raised, with the line that did."""
    frames = _frames_of_user(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        where = ""  # its own text has the place
    what = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
    shown = ""
    if len(frames) > 1:
        shown = "Traceback (most recent call last):\n" + "".join(traceback.format_list(frames))
        shown += "".join(traceback.format_exception_only(error))
    text = f"{doing} failed: {what}{where}"
    code = EXIT_MISUSED if isinstance(error, (ImportError, SyntaxError, UsageError)) else EXIT_FAILED
    return CannotServe(text, code, shown)


def _frames_of_user(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    """The frames without ours and without the machinery that imports."""
    ours = {__file__, importlib.__file__}
    return [
        frame
        for frame in traceback.extract_tb(trace)
        if frame.filename not in ours and not frame.filename.startswith("<frozen ")
    ]
