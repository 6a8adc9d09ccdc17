"""The rooms of the source tree, as a table and as a picture: read from the folders and from the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Final

from atomic_actors.base._errors import UsageError

__all__ = ("ROOMS_MARKERS", "rooms_section")

ROOMS_MARKERS: Final = ("<!-- generated: rooms -->", "<!-- /generated: rooms -->")

_PACKAGE: Final = "atomic_actors"

Arrows = dict[str, set[str]]


def rooms_section(source: Path) -> str:
    """A Mermaid picture of which room imports which, and a table of what each is for.

    An arrow that follows from others is left out: where `a` imports `b` and `b` imports `c`, that `a` imports `c`
    too would only be noise.

    Args:
        source: the package's folder.

    Raises:
        UsageError: two rooms import each other, or a room does not say what it is for.
    """
    arrows = _arrows_between_rooms(source)
    _check_one_way(arrows)
    picture = ["```mermaid", "flowchart TD", *_boxes(arrows), *_lines(_without_detours(arrows)), "```"]
    table = ["| room | what it is for |", "|---|---|"]
    table += [f"| `{name}/` | {purpose} |" for name, purpose in _purposes(source)]
    return "\n".join([*picture, "", *table])


def _modules(source: Path) -> Iterator[tuple[str, Path]]:
    """Every module but the package's own root: its dotted name without the package's, and its file."""
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        if path.name != "__init__.py" and "lua" not in parts:
            yield ".".join(parts), path


def _imports(path: Path, known: Set[str]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(f"{_PACKAGE}."):
            continue
        module = (node.module or "").removeprefix(f"{_PACKAGE}.")
        names = {f"{module}.{alias.name}" for alias in node.names} & known
        # Without a module of that name, it is something that the room offers from its `__init__`.
        found |= names or ({module} if module in known else {f"{module}.__init__"})
    return found


def _arrows_between_rooms(source: Path) -> Arrows:
    files = dict(_modules(source))
    imports = {name: _imports(path, files.keys()) for name, path in files.items()}
    folders = {path.parent.relative_to(source).as_posix() for path in files.values()} - {"."}
    rooms = {name: _room_of(name, imports, folders) for name in files}

    def room_of(name: str) -> str:
        return rooms[name] if name in rooms else name.removesuffix(".__init__").replace(".", "/")

    arrows: Arrows = {room: set() for room in rooms.values()}
    for name, found in imports.items():
        for other in found:
            arrows.setdefault(room_of(other), set())
            if room_of(other) != rooms[name]:
                arrows[rooms[name]].add(room_of(other))
    return arrows


def _room_of(name: str, imports: Mapping[str, set[str]], folders: set[str]) -> str:
    """A module's folder; where that holds other rooms and the module imports them, the module itself."""
    folder = "/".join(name.split(".")[:-1])
    inner = f"{folder.replace('/', '.')}." if folder else ""
    has_rooms = not folder or any(other.startswith(f"{folder}/") for other in folders)

    def reaches_rooms(module: str, seen: set[str]) -> bool:
        seen.add(module)
        return any(
            other.startswith(inner)
            and (other.count(".") > module.count(".") or (other not in seen and reaches_rooms(other, seen)))
            for other in imports.get(module, ())
        )

    if folder and not (has_rooms and reaches_rooms(name, set())):
        return folder
    return name.replace(".", "/")


def _check_one_way(arrows: Arrows) -> None:
    done: set[str] = set()

    def visit(room: str, path: tuple[str, ...]) -> None:
        if room in path:
            circle = " > ".join([*path[path.index(room) :], room])
            raise UsageError(f"rooms import each other: {circle}")
        if room not in done:
            for other in sorted(arrows[room]):
                visit(other, (*path, room))
            done.add(room)

    for room in sorted(arrows):
        visit(room, ())


def _without_detours(arrows: Arrows) -> Arrows:
    reached: Arrows = {}

    def reach(room: str) -> set[str]:
        if room not in reached:
            reached[room] = arrows[room].union(*(reach(other) for other in arrows[room]))
        return reached[room]

    return {
        room: {
            other
            for other in others
            if not any(other in reach(between) for between in others if between != other)
        }
        for room, others in arrows.items()
    }


def _boxes(arrows: Arrows) -> list[str]:
    """Each room as a box; those of one folder in a frame."""
    lines: list[str] = []
    frames: dict[str, list[str]] = {}
    folders = {room.split("/")[0] for room in arrows if "/" in room}
    for room in sorted(arrows):
        first = room.split("/")[0]
        label = room if first == room else room.removeprefix(f"{first}/")
        if first in folders:
            frames.setdefault(first, []).append(f'{_identifier(room)}["{label}"]')
        else:
            lines.append(f'    {_identifier(room)}["{label}"]')
    for folder, boxes in frames.items():
        lines.append(f'    subgraph {folder}_rooms["{folder}/"]')
        lines += [f"        {box}" for box in boxes]
        lines.append("    end")
    return lines


def _lines(arrows: Arrows) -> list[str]:
    return [
        f"    {_identifier(room)} --> {_identifier(other)}"
        for room in sorted(arrows)
        for other in sorted(arrows[room])
    ]


def _identifier(room: str) -> str:
    # `end` and the like are words of Mermaid's own; a prefix keeps every name clear of them.
    return "room_" + room.replace("/", "_")


def _purposes(source: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(source.rglob("__init__.py")):
        room = path.parent.relative_to(source).as_posix()
        if room == ".":
            continue
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        if not docstring:
            raise UsageError(f"{room}/__init__.py must say in one line what the room is for")
        yield room, docstring.splitlines()[0]
