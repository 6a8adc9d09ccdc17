"""Declarations that cannot work are refused, with a text that names the place and the remedy."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest

from atomic_actors.actors._messages import Command, RawMessage
from atomic_actors.actors._specs import Actor, EntityKind, handler
from atomic_actors.base._errors import InvalidHandler
from tests.unit.actors.accounts import Balance, Deposit, Ship, only, refused

HERE = __name__
S = TypeVar("S")
T = TypeVar("T")


async def good(self: Any, message: Deposit) -> int:
    return 0


class TestBadHandlers:
    def test_sync(self) -> None:
        with pytest.raises(InvalidHandler) as caught:

            class Bad(Actor):
                @handler
                def ship(self, message: Ship) -> str:
                    return ""

        assert str(caught.value) == (
            f"{HERE}.TestBadHandlers.test_sync.<locals>.Bad.ship: a handler must be written `async def`; run "
            "blocking work inside it with `await anyio.to_thread.run_sync(...)`"
        )

    def test_generators(self) -> None:
        async def stream(self: Any, message: Ship) -> AsyncIterator[str]:
            yield ""

        def pull(self: Any, message: Ship) -> Any:
            yield ""

        for function in (stream, pull):
            with pytest.raises(InvalidHandler, match="a handler returns one value; it must not yield"):
                handler(function)

    @pytest.mark.parametrize("thing", [5, staticmethod(good), classmethod(good)])
    def test_no_function(self, thing: Any) -> None:
        with pytest.raises(InvalidHandler, match="@handler goes above a plain async function"):
            handler(thing)

    def test_twice(self) -> None:
        async def function(self: Any, message: Ship) -> str:
            return ""

        handler(function)
        with pytest.raises(InvalidHandler, match="@handler is applied to it twice"):
            handler("again")(function)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"max_attempts": -1}, "max_attempts"),
            ({"max_attempts": "3"}, "max_attempts"),
            (
                {"on_interrupted": 5},
                "on_interrupted: expected 'dead_letter', 'retry', or a method or its name",
            ),
        ],
    )
    def test_options(self, options: dict[str, Any], text: str) -> None:
        with pytest.raises(InvalidHandler, match=rf"{HERE}.good: {text}"):
            handler(**options)(good)

    @pytest.mark.parametrize("name", ["", "a=b", "a\n"])
    def test_names(self, name: str) -> None:
        with pytest.raises(InvalidHandler, match=rf"{HERE}.good: name: "):
            handler(name)(good)

    def declare(self, function: Callable[..., Any], *name: str) -> type[Actor]:
        return type("Bad", (Actor,), {"f": handler(*name)(function)})

    def test_parameters(self) -> None:
        async def alone(self: Any) -> None: ...
        async def keyword(self: Any, *, message: Ship) -> None: ...
        async def more(self: Any, message: Ship, repo: Any) -> None: ...
        async def default(self: Any, message: Ship, verbose: bool = False) -> None: ...

        for function in (alone, keyword):
            assert "expected the parameters (self, message), got (self: 'Any'" in refused(
                self.declare(function)
            )
        assert "list the class with .using(...)" in refused(self.declare(more))
        assert only(self.declare(default)).by_type[Ship]

    def test_annotations(self) -> None:
        async def missing(self, message): ...
        async def raw(self: Any, message: RawMessage) -> None: ...
        async def number(self: Any, message: int) -> None: ...
        async def base(self: Any, message: Command[int]) -> None: ...
        async def union(self: Any, message: Ship | Deposit) -> None: ...
        async def lost(self: Any, message: Nowhere) -> None: ...  # noqa: F821

        for function, text in [
            (
                missing,
                "missing: it does not declare which message it handles; annotate `message` with a message class",
            ),
            (raw, "raw: it does not declare which message it handles"),
            (number, "number: builtins.int is not a message class; derive it from Command or Query"),
            (base, "base: Command is a base of messages; derive a class from it and use that"),
            (union, "is not a message class"),
            (lost, "lost: the annotation 'Nowhere' of its message cannot be resolved: name 'Nowhere' is not"),
        ]:
            assert text in refused(self.declare(function))

    def test_an_undecorated_message_names_the_handler(self) -> None:
        class Undecorated(Command[int]):
            pass

        async def f(self: Any, message: Undecorated) -> int:
            return 0

        text = refused(self.declare(handler_ready(f, Undecorated)))
        assert "f: " in text
        assert "Undecorated: a message is an attrs class or a dataclass" in text

    def test_none_at_all(self) -> None:
        class Empty(Actor[Balance]):
            pass

        assert refused(Empty).endswith("Empty has no handler; put @handler above an async function")

    def test_a_wrapped_handler_works(self) -> None:
        def traced(function: Any) -> Any:
            @functools.wraps(function)
            async def wrapper(*arguments: Any) -> Any:
                return await function(*arguments)

            return wrapper

        class Traced(Actor):
            @traced
            @handler(max_attempts=2)
            async def inside(self, message: Ship) -> str:
                return ""

            @handler
            @traced
            async def outside(self, message: Deposit) -> int:
                return 0

        spec = only(Traced)
        assert spec.by_type[Ship].max_attempts == 2
        assert spec.by_type[Ship].function is Traced.inside
        assert set(spec.by_type) == {Ship, Deposit}


def handler_ready(function: Any, annotation: Any) -> Any:
    """A function whose annotation is the class itself, as without postponed evaluation."""
    function.__annotations__["message"] = annotation
    return function


class TestBadOptions:
    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"kind": "my kind"}, "kind: 'my kind' may hold only letters"),
            ({"kind": ""}, "kind: must not be empty"),
            (
                {"idle_timout_s": 5},
                "unknown option 'idle_timout_s'; there are kind, durable, idle_timeout_s, ",
            ),
            ({"idle_timeout_s": -1}, "idle_timeout_s"),
            ({"on_dead": "stop"}, "on_dead"),
            ({"durable": "no"}, "durable: expected True or False, got 'no'"),
            (
                {"on_interrupted": 5},
                "on_interrupted: expected 'dead_letter', 'retry', or a method or its name",
            ),
        ],
    )
    def test_refused_where_they_stand(self, options: dict[str, Any], text: str) -> None:
        with pytest.raises(InvalidHandler, match=rf"Bad: {text}"):
            type("Bad", (Actor,), {}, **options)
        with pytest.raises(InvalidHandler, match=rf"EntityKind\(.*\): {text}"):
            EntityKind(**{"kind": "bad", **options})
