"""`python -m benchmarks`: measure the rows against their floors and print a table.

Progress goes to standard error, the table to standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks._measure import Settings
from benchmarks._report import as_json, markdown
from benchmarks._run import Outcome, Runner, environment, machine_speed
from benchmarks._store import running_store
from benchmarks.catalog import BACKENDS, NAMES, ROWS, Row

QUICK = {
    "warmup_s": 0.2,
    "window_s": 0.5,
    "messages": 2_000,
    "entities": 20_000,
    "orders": 1_230,
    "kills": 1,
}
QUICK_REPEATS = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    default = " ".join(row.name for row in ROWS.values() if row.default)
    parser.add_argument(
        "--rows",
        nargs="+",
        action="extend",
        type=_row_names,
        metavar="ROW",
        help=f"of {', '.join(NAMES)} or all, also with commas; default: {default}",
    )
    parser.add_argument(
        "--backend", choices=(*BACKENDS, "both", "all"), default="both", help="both: asyncio and trio"
    )
    parser.add_argument("--repeats", type=int, default=5, help="samples of each row and floor (default 5)")
    parser.add_argument("--window-s", type=float, default=3.0, help="seconds measured per sample (default 3)")
    parser.add_argument(
        "--kills",
        type=int,
        default=5,
        help="how often a worker dies, leaves or joins in such rows (default 5)",
    )
    parser.add_argument("--quick", action="store_true", help="a check that it runs; the figures mean little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    return parser


def _row_names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in (*NAMES, "all"):
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(NAMES)} or all")
    return names


def _chosen_rows(lists: Sequence[Sequence[str]] | None) -> list[Row]:
    if lists is None:
        return [row for row in ROWS.values() if row.default]
    names = [name for names in lists for name in names]
    if "all" in names:
        return list(ROWS.values())
    return [ROWS[name] for name in dict.fromkeys(names)]


def _chosen_backends(name: str) -> tuple[str, ...]:
    if name == "both":
        return ("asyncio", "trio")
    return BACKENDS if name == "all" else (name,)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; 1 if a sample failed, 0 whether targets are met or not."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.repeats < 1 or parsed.kills < 1:
        parser.error("--repeats, --kills: must be at least 1")
    repeats = QUICK_REPEATS if parsed.quick else parsed.repeats
    sizes = QUICK if parsed.quick else {"window_s": parsed.window_s, "kills": parsed.kills}
    rows = _chosen_rows(parsed.rows)
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        stores = {
            server: stack.enter_context(running_store(server))
            for server in dict.fromkeys(row.server for row in rows)
        }
        runner = Runner(stores.__getitem__, Settings(0, **sizes), repeats, _say)
        about = environment(list(stores.values()))
        for row in rows:
            for backend in _chosen_backends(parsed.backend):
                if backend in row.backends:
                    outcomes.append(runner.measure(row, backend))
                else:
                    _say(f"{row.name}, {backend}: not measured on this backend")
    speeds = [about.pop("million_additions_per_second"), machine_speed()]
    about |= {
        "speeds": speeds,
        "repeats": repeats,
        "window_s": runner.settings.window_s,
        "quick": parsed.quick,
    }
    table = markdown(outcomes, about)
    print(table)
    if parsed.markdown:
        parsed.markdown.write_text(table)
    if parsed.json:
        parsed.json.write_text(json.dumps(as_json(outcomes, about), indent=2) + "\n")
    return 1 if any(outcome.error is not None for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
