"""Measure how simple the package is: sizes, callbacks, wide classes, crowded calls, imports, and one ask.

    python -m scripts.house                    # the figures
    python -m scripts.house --walk             # also: which modules an ask to a warm entity passes through
    python -m scripts.house --check [--walk]   # exit code 1 where a target is missed

It measures the package `atomic_actors` that Python would import, so another checkout is measured with
`PYTHONPATH=<checkout>/src`. How each figure is counted is written at the function that counts it.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Final

PACKAGE: Final = "atomic_actors"

CALLBACKS_PER_KLOC_MAX: Final = 1.0
WIDE_CLASSES_MAX: Final = 5
CROWDED_CALLS_MAX: Final = 0

#: A class with this many attributes or more is wide.
WIDE_ATTRIBUTES: Final = 15
#: A call with more positional arguments than this is crowded.
POSITIONAL_MAX: Final = 5
#: Wide on purpose, and not counted: every setting, and every counter of a node, is a field.
WIDE_ON_PURPOSE: Final = frozenset({"Config", "SystemStatistics"})

Trees = Mapping[str, ast.Module]
AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Found:
    """One thing that was counted, and where it stands."""

    where: str
    what: str
    size: int = 1


# --- callbacks -----------------------------------------------------------------------------------------


def names_in(annotation: ast.AST) -> set[str]:
    """The names in an annotation, also in one that is written as a string."""
    found: set[str] = set()
    for node in ast.walk(annotation):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                found.add(name)
            case ast.Constant(value=str(text)):
                try:
                    found |= names_in(ast.parse(text, mode="eval"))
                except SyntaxError:
                    continue
            case _:
                pass
    return found


def is_callback_protocol(node: ast.stmt) -> bool:
    """Whether this is a protocol whose only method is `__call__`: a callable type in other words."""
    if not isinstance(node, ast.ClassDef) or not any("Protocol" in names_in(base) for base in node.bases):
        return False
    methods = [statement.name for statement in node.body if isinstance(statement, AnyFunction)]
    return methods == ["__call__"]


def assigned_type(node: ast.stmt) -> tuple[str, ast.expr] | None:
    """The name and the value of what may be a type alias: `Name = ...` at the top of a module."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            pass
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            if "TypeAlias" not in names_in(annotation):
                return None
        case _:
            return None
    is_type = isinstance(value, ast.Subscript | ast.BinOp | ast.Constant | ast.Name)
    return (name, value) if is_type and name.lstrip("_")[:1].isupper() else None


def imports_of(tree: ast.Module, trees: Trees) -> Iterator[tuple[str, str, str]]:
    """What a module imports by name from another one: what it calls it, the file, and the name there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            path = str(node.module).removeprefix(f"{PACKAGE}.").replace(".", "/")
            for file in (f"{path}.py", f"{path}/__init__.py"):
                if file in trees:
                    yield from ((alias.asname or alias.name, file, alias.name) for alias in node.names)


def callable_names(trees: Trees) -> dict[str, set[str]]:
    """For each file, the names there that mean a callable.

    `Callable`, its aliases, aliases that mention one of those, and protocols like it: where they are defined
    and where they are imported.
    """
    found = {path: {"Callable"} for path in trees}
    imported = {path: list(imports_of(tree, trees)) for path, tree in trees.items()}
    size = 0
    while size != (size := sum(map(len, found.values()))):
        for path, tree in trees.items():
            found[path] |= {
                node.name
                for node in tree.body
                if isinstance(node, ast.ClassDef)
                if is_callback_protocol(node)
            }
            aliases = [alias for statement in tree.body if (alias := assigned_type(statement)) is not None]
            found[path] |= {name for name, value in aliases if names_in(value) & found[path]}
        for path, names in found.items():
            names |= {name for name, file, name_there in imported[path] if name_there in found[file]}
    return found


def callbacks_of_class(node: ast.ClassDef, callables: set[str]) -> Iterator[str]:
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                if names_in(annotation) & callables:
                    yield name
            case ast.FunctionDef(name="__init__", args=arguments):
                for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                    if argument.annotation is not None and names_in(argument.annotation) & callables:
                        yield argument.arg
            case _:
                pass


def callbacks(trees: Trees) -> list[Found]:
    """Annotated attributes in a class's body, and parameters of `__init__`, whose type mentions a callable.

    A collection of callables counts once. An attribute that `__init__` only sets does not count: what it
    holds came in as a parameter, or was made by the object itself.
    """
    callables = callable_names(trees)
    return [
        Found(f"{path}:{node.lineno}", f"{node.name}.{name}")
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for name in callbacks_of_class(node, callables[path])
    ]


# --- wide classes and crowded calls --------------------------------------------------------------------


def attributes_of(node: ast.ClassDef) -> set[str]:
    """The annotated names in the class's body, and what its own methods assign to `self`."""
    found: set[str] = set()
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for inner in ast.walk(statement):
                    match inner:
                        case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                            found.add(name)
                        case _:
                            pass
            case _:
                pass
    return found


def wide_classes(trees: Trees) -> list[Found]:
    """Classes with `WIDE_ATTRIBUTES` or more attributes of their own, records too; the widest first."""
    found = [
        Found(f"{path}:{node.lineno}", node.name, len(attributes))
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and len(attributes := attributes_of(node)) >= WIDE_ATTRIBUTES
    ]
    return sorted(found, key=lambda wide: -wide.size)


def counted(wide: Iterable[Found]) -> list[Found]:
    return [found for found in wide if found.what not in WIDE_ON_PURPOSE]


def crowded_calls(trees: Trees) -> list[Found]:
    """Calls with more than `POSITIONAL_MAX` positional arguments; one `*unpacked` counts as one."""
    return [
        Found(f"{path}:{node.lineno}", ast.unparse(node.func), len(node.args))
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and len(node.args) > POSITIONAL_MAX
    ]


def function_lengths(trees: Trees) -> list[Found]:
    return [
        Found(f"{path}:{node.lineno}", node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, AnyFunction)
    ]


# --- imports -------------------------------------------------------------------------------------------

Arrows = Mapping[str, set[str]]


def reachable(start: str, arrows: Arrows) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in arrows.get(waiting.pop(), ()):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def circles(arrows: Arrows) -> list[list[str]]:
    """Each set of names that all reach each other, the largest first."""
    reached = {name: reachable(name, arrows) for name in arrows}
    found = {
        frozenset(other for other in targets if name in reached.get(other, ())) | {name}
        for name, targets in reached.items()
        if name in targets
    }
    return sorted((sorted(circle) for circle in found), key=len, reverse=True)


def lifted(arrows: Arrows, container: str) -> dict[str, set[str]]:
    """The arrows between what lies directly in a package: its modules, and its rooms each taken as one."""

    def child(module: str) -> str | None:
        inner = module.removeprefix(f"{container}.")
        return None if inner == module else f"{container}.{inner.split('.')[0]}"

    found: dict[str, set[str]] = {}
    for source, targets in arrows.items():
        for target in targets:
            first, second = child(source), child(target)
            if first is not None and second is not None and first != second:
                found.setdefault(first, set()).add(second)
                found.setdefault(second, set())
    return found


@dataclass
class Imports:
    """The imports between modules, and between the rooms of each package."""

    modules: dict[str, set[str]]
    packages: list[str]

    @property
    def rooms(self) -> dict[str, set[str]]:
        return lifted(self.modules, PACKAGE)

    def room_circles(self) -> list[list[str]]:
        return [circle for package in self.packages for circle in circles(lifted(self.modules, package))]


def read_imports() -> Imports:
    """The import graph, with the imports that only type checkers follow. The root, which imports all, is out."""
    import grimp

    graph = grimp.build_graph(PACKAGE)
    modules = {
        module: graph.find_modules_directly_imported_by(module) - {PACKAGE}
        for module in graph.modules
        if module != PACKAGE
    }
    packages = sorted(module for module in graph.modules if graph.find_children(module))
    return Imports(modules, packages)


# --- the report ----------------------------------------------------------------------------------------


@dataclass
class House:
    """What was measured."""

    trees: Trees
    lines: Mapping[str, int]
    imports: Imports
    callbacks: list[Found] = field(init=False)
    wide: list[Found] = field(init=False)
    crowded: list[Found] = field(init=False)

    def __post_init__(self) -> None:
        self.callbacks = callbacks(self.trees)
        self.wide = wide_classes(self.trees)
        self.crowded = crowded_calls(self.trees)

    @property
    def callbacks_per_kloc(self) -> float:
        return len(self.callbacks) / sum(self.lines.values()) * 1000

    def missed(self) -> Iterator[str]:
        """The targets that are not reached."""
        if self.callbacks_per_kloc > CALLBACKS_PER_KLOC_MAX:
            yield f"{self.callbacks_per_kloc:.2f} callbacks per 1,000 lines, at most {CALLBACKS_PER_KLOC_MAX}"
        if len(counted(self.wide)) > WIDE_CLASSES_MAX:
            yield f"{len(counted(self.wide))} wide classes, at most {WIDE_CLASSES_MAX}"
        if len(self.crowded) > CROWDED_CALLS_MAX:
            yield f"{len(self.crowded)} calls with more than {POSITIONAL_MAX} positional arguments"
        for circle in (*circles(self.imports.modules), *self.imports.room_circles()):
            yield f"a circle of imports: {', '.join(circle)}"


def read_trees(package: Path) -> tuple[Trees, Mapping[str, int]]:
    sources = {
        path.relative_to(package).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(package.rglob("*.py"))
    }
    trees = {name: ast.parse(source, filename=name) for name, source in sources.items()}
    return trees, {name: source.count("\n") for name, source in sources.items()}


def package_folder() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"no package {PACKAGE} to import: run from a checkout, with PYTHONPATH=src")
    return Path(spec.submodule_search_locations[0])


def measure() -> House:
    return House(*read_trees(package_folder()), read_imports())


def by_room(found: Iterable[Found]) -> str:
    """How many of them each room has, the fullest first."""
    counts: dict[str, int] = {}
    for each in found:
        room = each.where.rpartition("/")[0] or "the root"
        counts[room] = counts.get(room, 0) + 1
    return ", ".join(f"{room} {count}" for room, count in sorted(counts.items(), key=lambda item: -item[1]))


def largest(found: Sequence[Found], count: int = 5) -> str:
    ordered = sorted(found, key=lambda each: -each.size)[:count]
    return ", ".join(f"{each.what} {each.size} ({each.where})" for each in ordered)


def report(house: House, *, lists: bool) -> Iterator[str]:
    files = [Found(name, name, count) for name, count in house.lines.items()]
    functions = function_lengths(house.trees)
    sizes = sorted(function.size for function in functions)
    p95 = sizes[int(len(sizes) * 0.95)] if sizes else 0
    yield f"files {len(files)}, lines {sum(house.lines.values())}, median file {median(house.lines.values()):.0f}"
    yield f"largest files: {', '.join(f'{file.where} {file.size}' for file in sorted(files, key=lambda f: -f.size)[:5])}"
    yield f"functions {len(functions)}, p95 {p95} lines; largest: {largest(functions)}"
    yield f"callbacks: {len(house.callbacks)}, {house.callbacks_per_kloc:.2f} per 1,000 lines"
    yield f"  {by_room(house.callbacks)}"
    if lists:
        yield from (f"  {found.where} {found.what}" for found in house.callbacks)
    yield (
        f"classes with {WIDE_ATTRIBUTES} attributes or more: {len(counted(house.wide))} and, on purpose, "
        + (", ".join(found.what for found in house.wide if found.what in WIDE_ON_PURPOSE))
    )
    yield from (f"  {found.size} {found.what} ({found.where})" for found in counted(house.wide))
    yield f"calls with more than {POSITIONAL_MAX} positional arguments: {len(house.crowded)}"
    yield f"  {by_room(house.crowded)}"
    if lists:
        yield from (f"  {found.where} {found.what}, {found.size}" for found in house.crowded)
    yield from report_imports(house.imports)


def report_imports(imports: Imports) -> Iterator[str]:
    rooms = imports.rooms
    both_ways = [
        f"{first} and {second}"
        for first, targets in rooms.items()
        for second in targets
        if first < second and first in rooms[second]
    ]
    yield (
        f"rooms {len(rooms)}, arrows between them {sum(map(len, rooms.values()))}, "
        f"both ways: {', '.join(both_ways) or 'none'}"
    )
    found = circles(imports.modules)
    yield f"largest circle of modules: {len(found[0]) if found else 1}; circles inside rooms: " + (
        "; ".join(", ".join(circle) for circle in imports.room_circles()) or "none"
    )
    widest = max(imports.modules, key=lambda module: len(imports.modules[module]))
    yield f"widest import: {widest}, {len(imports.modules[widest])} modules of ours"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; with `--check`, return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m scripts.house", description=__doc__.splitlines()[0])
    parser.add_argument("--walk", action="store_true", help="trace an ask to a warm entity")
    parser.add_argument("--check", action="store_true", help="exit code 1 where a target is missed")
    parser.add_argument("--lists", action="store_true", help="list each callback and each crowded call")
    options = parser.parse_args(arguments)
    house = measure()
    for line in report(house, lists=options.lists):
        print(line)
    missed = list(house.missed())
    if options.walk:
        from scripts import house_walk

        walks = house_walk.walks()
        for walk in walks:
            print(walk.report())
        missed += [problem for walk in walks for problem in walk.missed()]
    for problem in missed if options.check else ():
        print(f"missed: {problem}", file=sys.stderr)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
