"""Which files are generated, and how a generated block sits in a file that people write.

A generated file is compared as a whole; of a file with blocks only what stands between their markers belongs
to us.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from attrs import frozen

from atomic_actors.base._errors import UsageError
from atomic_actors.tools.codegen import _pages, _rooms, _step_forms, _transitions

__all__ = ("GeneratedFile", "find_root", "generated_files", "stale_files", "write_files")

LUA_FOLDER: Final = "src/atomic_actors/journal/redis/lua"
ENCODERS_PATH: Final = "src/atomic_actors/journal/redis/_encoders.py"
CONFIGURATION_PATH: Final = "docs/configuration.md"
LIFE_PATH: Final = "docs/message-life.md"
ERRORS_PATH: Final = "docs/errors.md"
ARCHITECTURE_PATH: Final = "docs/architecture.md"
SOURCE_PATH: Final = "src/atomic_actors"


@frozen
class GeneratedFile:
    """A file and what it should hold.

    Args:
        name: the path from the root of the source tree.
        path: where it is.
        text: the whole text that it should have.
    """

    name: str
    path: Path
    text: str

    def is_stale(self) -> bool:
        """Whether the file is missing or holds something else."""
        return not self.path.is_file() or self.path.read_text("utf-8") != self.text


def find_root() -> Path:
    """The root of the source tree that this package lies in.

    Raises:
        UsageError: the package was installed from a wheel, which has no docs to write.
    """
    root = Path(__file__).resolve().parents[4]
    if not (root / "pyproject.toml").is_file():
        raise UsageError(
            f"{root} is not a source tree of atomic_actors; run this from a checkout, or give --root"
        )
    return root


def generated_files(root: Path) -> list[GeneratedFile]:
    """Every generated file with the text it should have.

    Raises:
        UsageError: a file that must be there already is not, or has lost its markers.
    """
    life = root / LIFE_PATH
    life_text = life.read_text("utf-8") if life.is_file() else _pages.MESSAGE_LIFE_PAGE
    texts: dict[str, Callable[[], str]] = {
        ENCODERS_PATH: _step_forms.encoders_module,
        CONFIGURATION_PATH: _pages.configuration_page,
        LIFE_PATH: lambda: replace_block(
            life_text, _transitions.PAGE_MARKERS, _transitions.diagram(), LIFE_PATH
        ),
        ERRORS_PATH: _pages.errors_page,
    }
    architecture = root / ARCHITECTURE_PATH
    if architecture.is_file():
        texts[ARCHITECTURE_PATH] = lambda: replace_block(
            architecture.read_text("utf-8"),
            _rooms.ROOMS_MARKERS,
            _rooms.rooms_section(root / SOURCE_PATH),
            ARCHITECTURE_PATH,
        )
    files = [GeneratedFile(name, root / name, make()) for name, make in texts.items()]
    return [*_lua_parts(root), *files]


def _lua_parts(root: Path) -> list[GeneratedFile]:
    """The parts of the Lua library, with the table of transitions and the readers of steps."""
    names: list[str] = []

    def make_block(name: str) -> str:
        names.append(name)
        return _transitions.lua_table() if name == "transitions" else _step_forms.lua_block(name)

    parts: list[GeneratedFile] = []
    for path in sorted((root / LUA_FOLDER).glob("*.lua")):
        name = f"{LUA_FOLDER}/{path.name}"
        parts.append(GeneratedFile(name, path, replace_lua_blocks(path.read_text("utf-8"), make_block, name)))
    missing = [name for name in ("transitions", *_step_forms.missing_readers(names)) if name not in names]
    if missing:
        raise UsageError(f"no file of {LUA_FOLDER} has the generated block {', '.join(missing)}")
    return parts


_LUA_BEGIN: Final = re.compile(r"( *)-- <generated: (.+)>")
_LUA_END: Final = "-- </generated>"


def replace_lua_blocks(text: str, make_block: Callable[[str], str], name: str) -> str:
    """The text with everything between the marker lines of each block replaced.

    Args:
        text: of a part of the Lua library.
        make_block: what belongs into a block, by the name of the block.
        name: of the file.

    Raises:
        UsageError: a block has no end, or has no begin, or begins within another.
    """
    lines: list[str] = []
    indent: str | None = None
    for line in text.splitlines():
        begin = _LUA_BEGIN.fullmatch(line)
        if begin is not None or line.strip() == _LUA_END:
            if (begin is None) is (indent is None):
                raise UsageError(f"{name} must have a line {_LUA_END!r} after each begin of a block")
            lines.append(line)
            indent = None if begin is None else begin[1]
            if begin is not None:
                lines += [begin[1] + made for made in make_block(begin[2]).splitlines()]
        elif indent is None:
            lines.append(line)
    if indent is not None:
        raise UsageError(f"{name} must have a line {_LUA_END!r} after each begin of a block")
    return "\n".join(lines) + "\n"


def replace_block(text: str, markers: tuple[str, str], block: str, name: str) -> str:
    """The text with everything between the two marker lines replaced.

    Raises:
        UsageError: the markers do not each stand exactly once, in order, on lines of their own.
    """
    lines = text.splitlines()
    places = [[index for index, line in enumerate(lines) if line.strip() == marker] for marker in markers]
    if [len(place) for place in places] != [1, 1] or places[0][0] > places[1][0]:
        raise UsageError(f"{name} must have the line {markers[0]!r} once, and after it {markers[1]!r} once")
    begin, end = places[0][0], places[1][0]
    return "\n".join([*lines[: begin + 1], *block.splitlines(), *lines[end:]]) + "\n"


def stale_files(files: Iterable[GeneratedFile]) -> list[GeneratedFile]:
    """The files that are missing or hold something else."""
    return [file for file in files if file.is_stale()]


def write_files(files: Iterable[GeneratedFile]) -> None:
    """Write each file, with its directory where that is missing."""
    for file in files:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_text(file.text, "utf-8")
