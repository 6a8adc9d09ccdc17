"""The counting rules of `scripts.house`, on small samples."""

from __future__ import annotations

import ast
import sys
from textwrap import dedent

import pytest

from scripts.house import (
    House,
    Imports,
    attributes_of,
    by_room,
    callable_names,
    callbacks,
    circles,
    counted,
    crowded_calls,
    function_lengths,
    lifted,
    report,
    wide_classes,
)
from scripts.house_walk import Tracer, Walk, outer_room_of, room_of


def parse(source: str) -> ast.Module:
    return ast.parse(dedent(source))


def trees(source: str) -> dict[str, ast.Module]:
    return {"room/_module.py": parse(source)}


def counted_callbacks(source: str) -> list[str]:
    return [found.what for found in callbacks(trees(source))]


@pytest.mark.parametrize(
    ("field", "is_callback"),
    [
        ("on_lost: Callable[[int], None]", True),
        ("on_lost: Callable[[int], None] | None = None", True),
        ("on_lost: collections.abc.Callable[[], None]", True),
        ("on_lost: 'Callable[[], None]'", True),
        ("on_lost: OnLost", True),
        ("on_lost: Either", True),
        ("on_lost: _Private", True),
        ("waiting: dict[str, OnLost]", True),
        ("host: CallsBack", True),
        ("host: Host", False),
        ("limit: int", False),
        ("limit: Limit", False),
        ("name: 'a name, which is no type'", False),
    ],
)
def test_callbacks_in_the_body_of_a_class(field: str, is_callback: bool) -> None:
    source = f"""
        OnLost = Callable[[int], None]
        Either: TypeAlias = "OnLost | None"
        _Private = OnLost | int
        Limit = int | float

        class CallsBack(Protocol):
            def __call__(self) -> None: ...

        class Host(Protocol):
            def __call__(self) -> None: ...
            def wake(self) -> None: ...

        class Sample:
            {field}
    """
    assert counted_callbacks(source) == ([f"Sample.{field.partition(':')[0]}"] if is_callback else [])


def test_callbacks_of_constructors() -> None:
    source = """
        class Sample:
            def __init__(self, first: Callable[[], None], /, second: int, *, third: "Callable[[], None]") -> None:
                self._first: Callable[[], None] = first

            def listen(self, listener: Callable[[], None]) -> None: ...
    """
    assert counted_callbacks(source) == ["Sample.first", "Sample.third"]


def test_aliases_are_known_where_they_are_imported() -> None:
    sources = {
        "a.py": parse("from atomic_actors.room import Then\nclass A:\n    then: Then"),
        "room/__init__.py": parse("from atomic_actors.b import Then"),
        "b.py": parse("Then = Callable[[], None]\nclass B:\n    then: Then"),
        "c.py": parse("class Then: ...\nclass C:\n    then: Then"),
        # The same name from elsewhere is another thing.
        "d.py": parse("from atomic_actors.c import Then\nclass D:\n    then: Then"),
    }
    assert callable_names(sources)["a.py"] == {"Callable", "Then"}
    assert [found.what for found in callbacks(sources)] == ["A.then", "B.then"]


def test_attributes_are_counted_once_each() -> None:
    (node,) = parse(
        """
        class Sample:
            limit: int
            CONSTANT = 1

            def __init__(self) -> None:
                self.limit = 1
                self._first, self._second = 1, 2
                other.third = 3

            async def run(self) -> None:
                self._late = self._first
        """
    ).body
    assert isinstance(node, ast.ClassDef)
    assert attributes_of(node) == {"limit", "_first", "_second", "_late"}


def wide(name: str, count: int) -> str:
    return f"class {name}:\n" + "".join(f"    field_{number}: int\n" for number in range(count))


def test_wide_classes() -> None:
    source = wide("Narrow", 14) + wide("Wide", 15) + wide("Config", 40)
    found = wide_classes({"m.py": parse(source)})
    assert [(each.what, each.size) for each in found] == [("Config", 40), ("Wide", 15)]
    assert [each.what for each in counted(found)] == ["Wide"]


def test_crowded_calls() -> None:
    source = (
        "f(1, 2, 3, 4, 5)\ng(1, 2, 3, 4, 5, 6)\nh(1, 2, 3, 4, 5, six=6)\nk(1, 2, 3, 4, 5, *more)\nx.y(*row)"
    )
    assert [(each.where, each.what, each.size) for each in crowded_calls({"m.py": parse(source)})] == [
        ("m.py:2", "g", 6),
        ("m.py:4", "k", 6),
    ]


def test_lengths_of_functions() -> None:
    source = (
        "def f():\n    pass\n\nclass A:\n    async def g(self):\n        return (\n            1\n        )"
    )
    assert [(each.what, each.size) for each in function_lengths(trees(source))] == [("f", 2), ("g", 4)]


def test_circles() -> None:
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": {"d"}, "f": {"a"}}
    assert circles(arrows) == [["a", "b", "c"], ["d", "e"]] or circles(arrows) == [
        ["d", "e"],
        ["a", "b", "c"],
    ]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_arrows_between_rooms() -> None:
    modules = {
        "atomic_actors.node._sender": {"atomic_actors.base._errors", "atomic_actors.node.routing._router"},
        "atomic_actors.node.routing._router": {"atomic_actors.base._errors"},
        "atomic_actors.base._errors": set(),
        "atomic_actors.base": {"atomic_actors.base._errors"},
    }
    assert lifted(modules, "atomic_actors") == {
        "atomic_actors.node": {"atomic_actors.base"},
        "atomic_actors.base": set(),
    }
    assert lifted(modules, "atomic_actors.node") == {
        "atomic_actors.node._sender": {"atomic_actors.node.routing"},
        "atomic_actors.node.routing": set(),
    }


def house(source: str, modules: dict[str, set[str]]) -> House:
    lines = {"room/_module.py": source.count("\n")}
    return House(trees(source), lines, Imports(modules, ["atomic_actors"]))


def test_a_house_in_order_misses_no_target() -> None:
    good = house("x = 1\n", {"atomic_actors.a": {"atomic_actors.b"}, "atomic_actors.b": set()})
    assert list(good.missed()) == []
    assert "callbacks: 0, 0.00 per 1,000 lines" in list(report(good, lists=True))


def test_each_target_can_be_missed() -> None:
    source = "".join(wide(f"Wide{number}", 15) for number in range(6))
    source += "class Called:\n    then: Callable[[], None]\n\nf(1, 2, 3, 4, 5, 6)\n"
    modules = {"atomic_actors.a": {"atomic_actors.b"}, "atomic_actors.b": {"atomic_actors.a"}}
    bad = house(source, modules)
    first, second, third, *rest = bad.missed()
    assert first.endswith("callbacks per 1,000 lines, at most 1.0")
    assert second == "6 wide classes, at most 5"
    assert third == "1 calls with more than 5 positional arguments"
    # Between two modules, and between the two of them in their package.
    assert rest == ["a circle of imports: atomic_actors.a, atomic_actors.b"] * 2
    text = "\n".join(report(bad, lists=True))
    assert "Called.then" in text
    assert "both ways: atomic_actors.a and atomic_actors.b" in text
    assert by_room(bad.callbacks) == "room 1"


def test_stays() -> None:
    journey = ["_system.py", "node/_a.py", "node/_a.py", "node/_b.py", "node/x/_c.py", "node/_a.py"]
    walk = Walk("memory:", journey)
    assert walk.module_stays == {"_system.py": 1, "node/_a.py": 2, "node/_b.py": 1, "node/x/_c.py": 1}
    assert walk.room_stays == {"_system.py": 1, "node": 2, "node/x": 1}
    assert walk.missed() == []
    assert "6 calls; 5 stays in 4 modules; 4 stays in 3 rooms; 2 in 2 outer rooms" in walk.report()
    assert (room_of("node/x/_c.py"), outer_room_of("node/x/_c.py")) == ("node/x", "node")


def test_a_long_walk_misses_the_targets() -> None:
    walk = Walk("memory:", [f"room_{number % 21}/_m.py" for number in range(42)])
    assert walk.missed() == [
        "ask, memory:: 42 stays in rooms, at most 40",
        "ask, memory:: 21 modules, at most 15",
    ]


def test_the_tracer_sees_calls_into_the_package_only() -> None:
    from atomic_actors import EntityRef

    before = sys.getprofile()
    entity = EntityRef("kind", "id")
    with Tracer() as tracer:
        dedent("not ours")
        str(entity)
    assert sys.getprofile() is before
    assert set(tracer.modules) == {"base/_records.py"}
