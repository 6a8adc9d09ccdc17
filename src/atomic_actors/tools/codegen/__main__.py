"""The command: `python -m atomic_actors.tools.codegen [--check] [--root DIRECTORY]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from atomic_actors.base._errors import UsageError
from atomic_actors.tools.codegen._files import find_root, generated_files, stale_files, write_files


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the generated files again, or with `--check` only say which are stale.

    Returns:
        0; 1 if a file is stale; 2 if a file cannot be generated.
    """
    parser = argparse.ArgumentParser(
        prog="python -m atomic_actors.tools.codegen",
        description="Write the files that are generated from the code.",
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; name the stale files and exit with 1"
    )
    parser.add_argument("--root", type=Path, help="the source tree; by default the one this package lies in")
    options = parser.parse_args(arguments)
    try:
        files = generated_files(options.root or find_root())
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    stale = stale_files(files)
    if options.check:
        for file in stale:
            print(f"{file.name} is stale; run python -m atomic_actors.tools.codegen", file=sys.stderr)
        return 1 if stale else 0
    write_files(stale)
    for file in stale:
        print(f"wrote {file.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
