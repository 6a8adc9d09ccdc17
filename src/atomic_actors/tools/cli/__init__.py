"""The command `atomic-actors`: workers, the demo, what operators need. Imports `workers`, `demo` and what is below.

`_commands` has the commands, `_operation` opens the store for them, `_screen` prints; `_workers` runs processes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Final

from cyclopts import CycloptsError

from atomic_actors.base._errors import AtomicActorsError, InvalidConfig, InvalidEntityId, InvalidMessageId
from atomic_actors.tools.cli._commands import app
from atomic_actors.tools.cli._misused import Misused
from atomic_actors.tools.cli._operation import Stopped
from atomic_actors.tools.cli._screen import Screen
from atomic_actors.tools.demo._data import FlightFileDamaged

__all__ = ("main",)

EXIT_FINE: Final = 0
EXIT_FAILED: Final = 1
EXIT_MISUSED: Final = 2
EXIT_INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the command's name; those of this process where left out.

    Returns:
        The exit code: 0 fine; 1 the work failed, with one line on standard error that says why; 2 the
        command itself is wrong; 130 after Ctrl-C and 143 after SIGTERM.
    """
    # What a command has to say it says itself; log records on top of that would only confuse.
    for name in ("atomic_actors", "coredis"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    words = list(sys.argv[1:] if arguments is None else arguments)
    screen = Screen()
    try:
        code = app(
            words,
            console=screen.output,
            print_error=False,
            exit_on_error=False,
            result_action="return_value",
        )
    except (CycloptsError, Misused, InvalidConfig, InvalidEntityId, InvalidMessageId) as error:
        screen.error(str(error))
        return EXIT_MISUSED
    except (AtomicActorsError, FlightFileDamaged) as error:
        screen.error(str(error) or type(error).__name__)
        return EXIT_FAILED
    except Stopped as stopped:
        screen.error(f"stopped by {stopped.signal.name}")
        return 128 + stopped.signal
    except KeyboardInterrupt:
        screen.error("stopped by SIGINT")
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else EXIT_FINE
