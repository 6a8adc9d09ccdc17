"""What the architecture page and the map in `_system` name is there: modules, folders, classes, functions, members."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from tests.docs.pages import ROOT

PACKAGE = ROOT / "src" / "atomic_actors"
PAGE = ROOT / "docs" / "architecture.md"
SYSTEM = PACKAGE / "_system.py"

ROOMS = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("_"))

CODE = re.compile(r"`([^`\n]+)`")
#: A file or folder, or a module without its suffix.
PLACE = re.compile(
    r"(?:[\w.-]+/)*[\w.-]+\.(?:py|lua|md)|(?:[a-z]\w*/)+|(?:" + "|".join(ROOMS) + r")(?:/\w+)+|_[a-z]\w*"
)
#: A class of ours, or a member of one.
CLASS = re.compile(r"((?:[A-Z][a-z]+)+)(?:\.([a-z]\w*))?")
#: A function, a setting or the like.
WORDS = re.compile(r"[a-z]+(?:_[a-z0-9]+)+")
#: In a diagram, and in the tree of `_system`.
SEQUENCE = re.compile(r"^```mermaid\nsequenceDiagram\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DIAGRAM_CLASS = re.compile(r"\b(?:[A-Z][a-z]+){2,}\b|(?<=as )[A-Z]\w+")
DIAGRAM_CALL = re.compile(r": ([a-z]\w+)\(")
TREE_PLACE = re.compile(r"\s((?:[a-z]\w*/)+_\w+)$", re.MULTILINE)


@cache
def members() -> dict[str, set[str]]:
    """The classes of the package, with what each defines or is given in its body."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                own = found.setdefault(node.name, set())
                for each in node.body:
                    match each:
                        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                            own.add(name)
                        case ast.AnnAssign(target=ast.Name(id=name)):
                            own.add(name)
                        case _:
                            pass
    return found


@cache
def source() -> str:
    return "\n".join(
        path.read_text("utf-8")
        for path in PACKAGE.rglob("*")
        if path.suffix in (".py", ".lua") and path != SYSTEM
    )


def is_there(place: str) -> bool:
    """Whether a path, with or without its suffix, is in the package or the repository; a bare module anywhere."""
    if place.startswith("_") and "/" not in place:
        return any(PACKAGE.rglob(place.removesuffix(".py") + ".py"))
    return any((folder / name).exists() for folder in (PACKAGE, ROOT) for name in (place, f"{place}.py"))


def wrong_name(code: str) -> str:
    """Why a piece of inline code names nothing of ours; "" where it does, or is something else."""
    if PLACE.fullmatch(code):
        return "" if is_there(code) else f"no module or folder {code}"
    if WORDS.fullmatch(code):
        return "" if re.search(rf"\b{code}\b", source()) else f"nothing is called {code}"
    if named := CLASS.fullmatch(code):
        owner, member = named.groups()
        if owner not in members():
            return f"no class {owner}"
        if member and member not in members()[owner]:
            return f"{owner} has no {member}"
    return ""


def wrong_names(text: str) -> Iterator[str]:
    for code in sorted(set(CODE.findall(text))):
        if why := wrong_name(code):
            yield why
    for diagram in SEQUENCE.findall(text):
        yield from (f"no class {name}" for name in DIAGRAM_CLASS.findall(diagram) if name not in members())
        methods = set[str]().union(*members().values())
        yield from (f"no method {name}" for name in DIAGRAM_CALL.findall(diagram) if name not in methods)


@pytest.mark.parametrize(
    "text",
    [
        "`_gone.py`",
        "`node/_gone`",
        "`node/gone/`",
        "`GoneAway`",
        "`gone_away`",
        "`Membership.gone`",
        "```mermaid\nsequenceDiagram\n    participant A as Gone\n```",
        "```mermaid\nsequenceDiagram\n    A->>B: gone(now)\n```",
    ],
)
def test_names_that_are_gone_are_seen(text: str) -> None:
    assert list(wrong_names(text))


@pytest.mark.parametrize(
    "text",
    ["`node/_sender.py`", "`node/ownership/`", "`Membership.start`", "`T:L`", "`decide`", "`lease_ttl_s`"],
)
def test_names_that_are_there_pass(text: str) -> None:
    assert not list(wrong_names(text))


def test_the_architecture_page_names_what_is_there() -> None:
    assert not list(wrong_names(PAGE.read_text("utf-8")))


def map_of_the_system() -> str:
    text = ast.get_docstring(ast.parse(SYSTEM.read_text("utf-8")))
    assert text
    return text


def test_the_map_names_what_is_there() -> None:
    text = map_of_the_system()
    assert not list(wrong_names(text))
    places = TREE_PLACE.findall(text)
    assert len(places) > 20
    assert not [place for place in places if not is_there(place)]


def tree_lines() -> list[tuple[str, str]]:
    """Class and module of each line of the tree that has both."""
    return re.findall(r"[├└]─ (\w+)\b.*\s((?:[a-z]\w*/)+_\w+)$", map_of_the_system(), re.MULTILINE)


def test_each_part_is_in_the_module_that_the_map_gives() -> None:
    for part, place in tree_lines():
        source = (PACKAGE / f"{place}.py").read_text("utf-8")
        assert re.search(rf"\b{part}\b", source), f"{place} knows no {part}"


def test_every_room_is_on_the_map() -> None:
    rooms = [path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    text = map_of_the_system()
    for room in rooms:
        name = room.relative_to(PACKAGE).as_posix()
        if name.split("/")[0] not in ("testing", "tools"):
            assert re.search(rf"\b{name}\b", text), f"{name} is not on the map"
