"""What `actors=` lists: classes and kinds with what they need, modules to scan; and the outbox."""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeVar

import pytest
from attrs import frozen

from atomic_actors.actors._messages import Command, RawMessage
from atomic_actors.actors._specs import Actor, Context, EntityKind, Outbox, collect
from atomic_actors.base._errors import (
    InvalidConfig,
    InvalidEntityId,
    InvalidHandler,
    OutboxLimitExceeded,
    UnknownMessageType,
)
from atomic_actors.base._lifecycle import InterruptionPolicy
from atomic_actors.base._records import Completed, EntityRef, Park, Retry
from tests.unit.actors.accounts import Account, Balance, Deposit, Ship, only, refused, run

HERE = __name__
S = TypeVar("S")
T = TypeVar("T")


class Repo:
    pass


class TestUsing:
    def test_the_constructor_gets_it(self) -> None:
        class Stored(Account):
            def __init__(self, repo: Repo, *, limit: int = 3) -> None:
                self.repo, self.limit = repo, limit

        repo = Repo()
        spec = only(Stored.using(repo=repo, limit=4))
        first, second = spec.make_instance(), spec.make_instance()
        assert first is not second
        assert (first.repo, first.limit) == (repo, 4)

        name = f"{HERE}.TestUsing.test_the_constructor_gets_it.<locals>.Stored"
        assert refused(Stored, InvalidConfig) == (
            f"actors[0]: the constructor of {name} needs 'repo'; write Stored.using(repo=...)"
        )
        assert refused(Stored.using(repo=repo, rpeo=1), InvalidConfig) == (
            f"actors[0]: {name}.using(): unexpected keyword 'rpeo'; the constructor takes 'repo', 'limit'"
        )
        assert refused(Account.using(repo=1), InvalidConfig).endswith(
            "unexpected keyword 'repo'; the constructor takes no keywords"
        )

    def test_a_constructor_that_takes_anything(self) -> None:
        class Open(Account):
            def __init__(self, **keywords: Any) -> None:
                self.keywords = keywords

        assert only(Open.using(cls=1, kind=2)).make_instance().keywords == {"cls": 1, "kind": 2}


class Turn(Context[Any]):
    """A context that a test can make."""

    def __init__(self, state: Any) -> None:
        self.state = state

    async def ask(self, entity: EntityRef, message: Any) -> Any:
        raise NotImplementedError

    def start_soon(self, function: Any, *args: Any) -> None:
        raise NotImplementedError


class TestEntityKind:
    @pytest.mark.anyio
    async def test_free_functions(self) -> None:
        accounts = EntityKind("account", state=Balance, max_attempts=2)

        @accounts.handler
        async def deposit(context: Context[Balance], message: Deposit) -> int:
            context.state = Balance(message.amount)
            return context.state.amount

        @accounts.handler(transactional=True, max_attempts=5)
        async def ship(context: Context[Balance], message: Ship, *, repo: Repo, prefix: str = "") -> str:
            return f"{prefix}{type(repo).__name__}"

        @accounts.handler("*")
        async def rest(context, message):
            return message.name

        @accounts.on_activate
        async def load(context: Context[Balance], repo: Repo) -> None:
            context.state = Balance(7)

        assert accounts.ref("a-42") == EntityRef("account", "a-42")
        spec = only(accounts.using(repo=Repo(), prefix=">"))
        assert (spec.kind, spec.state_type, spec.make_instance()) == ("account", Balance, None)
        assert all(s.free for s in spec.handlers.values())
        assert spec.by_type[Deposit].max_attempts == 2
        assert spec.by_type[Ship].max_attempts == 5
        context = Turn(Balance())
        assert await run(spec.by_type[Deposit], context, Deposit(3)) == 3
        assert context.state == Balance(3)
        assert await run(spec.by_type[Ship], context, Ship("o")) == ">Repo"
        assert spec.fallback is not None
        assert await run(spec.fallback, context, RawMessage("Hello")) == "Hello"
        assert spec.on_activate is not None
        await spec.on_activate(context)
        assert context.state == Balance(7)
        assert await deposit(context, Deposit(1)) == 1

        where = f"{HERE}.TestEntityKind.test_free_functions.<locals>"
        assert refused(accounts, InvalidConfig) == (
            f"actors[0]: {where}.ship needs 'repo'; list the kind with .using(repo=...)"
        )
        assert refused(accounts.using(repo=1, rpeo=2), InvalidConfig) == (
            f"actors[0]: {HERE}.EntityKind('account').using(): unexpected keyword 'rpeo'; its functions take "
            "'repo', 'prefix'"
        )

    @pytest.mark.anyio
    async def test_a_recovery_function_gets_what_it_needs(self) -> None:
        orders = EntityKind("order")

        async def look(context: Context, message: Ship, *, answer: str) -> Completed[str] | Retry | Park:
            return Completed(answer)

        @orders.handler(on_interrupted=look)
        async def ship(context: Context, message: Ship) -> str:
            return ""

        spec = only(orders.using(answer="sent")).by_type[Ship]
        assert spec.policy is InterruptionPolicy.METHOD
        assert spec.recover is not None
        assert await spec.recover(Turn(None), Ship("o")) == Completed("sent")
        assert "look needs 'answer'" in refused(orders, InvalidConfig)

    def test_a_name_is_no_method_here(self) -> None:
        orders = EntityKind("order", on_interrupted="check")

        @orders.handler
        async def ship(context: Context, message: Ship) -> str:
            return ""

        assert "EntityKind('order'): on_interrupted='check' is neither 'dead_letter'" in refused(orders)

    def test_refused(self) -> None:
        orders = EntityKind("order")
        assert refused(orders).endswith(
            "EntityKind('order') has no handler; put @handler above an async function"
        )

        async def hook(context: Context) -> None: ...

        orders.on_passivate(hook)
        with pytest.raises(InvalidHandler, match=r"both .*hook and .*hook are on_passivate"):
            orders.on_passivate(hook)

        @orders.handler
        async def ship(context: Context, message: Ship) -> str:
            return ""

        @orders.handler
        async def ship_again(context: Context, message: Ship) -> str:
            return ""

        assert "ship_again handle 'Ship'" in refused(orders)

    def test_local_messages(self) -> None:
        @frozen
        class Local(Command[int]):
            pass

        orders = EntityKind("order")

        @orders.handler(max_attempts=1)
        async def one(context: Context, message: Local) -> int:
            return 0

        assert set(only(orders).by_type) == {Local}


class TestCollect:
    def module(self, source: str) -> ModuleType:
        module = ModuleType("bank_module")
        header = (
            "from __future__ import annotations\n"
            "from attrs import frozen\n"
            "from atomic_actors.actors._specs import Actor, EntityKind, handler\n"
            "from atomic_actors.actors._messages import Command\n"
            f"from {HERE} import Account as Imported\n"
        )
        exec(header + source, vars(module))
        return module

    def test_a_module_gives_what_it_defines(self) -> None:
        module = self.module(
            "@frozen\n"
            "class Ping(Command[int]): pass\n"
            "class Base(Actor): pass\n"
            "class Pinged(Base):\n"
            "    @handler\n"
            "    async def ping(self, message: Ping) -> int: return 1\n"
            "Alias = Pinged\n"
            "pongs = EntityKind('pong')\n"
            "@pongs.handler\n"
            "async def pong(context, message: Ping) -> int: return 1\n"
        )
        vars(module)["foreign"] = EntityKind("foreign")
        assert set(collect([module, Account])) == {"pinged", "pong", "account"}

    def test_a_module_without_actors(self) -> None:
        text = refused(self.module(""), InvalidConfig)
        assert text == "actors[0]: module bank_module defines no actor with a handler"

    def test_duplicates(self) -> None:
        class Other(Account, kind="account"):
            pass

        with pytest.raises(InvalidConfig) as caught:
            collect([Account, Other])
        assert str(caught.value) == (
            f"actors[1]: kind 'account' is declared by both {Account.__module__}.Account and {HERE}.TestCollect.test_duplicates."
            "<locals>.Other; give one of them another kind"
        )
        with pytest.raises(
            InvalidConfig, match=r"actors\[1\]: .*Account is listed twice; a kind is declared once"
        ):
            collect([Account, Account.using()])

    @pytest.mark.parametrize("thing", ["account", 5, None, int, Actor, Actor[Balance]])
    def test_anything_else(self, thing: Any) -> None:
        text = refused(thing, InvalidConfig)
        assert text.startswith("actors[0]: expected an Actor class, an EntityKind or a module, got ")

    def test_an_instance(self) -> None:
        text = refused(Account(), InvalidConfig)
        assert text == "actors[0]: Account is given as an instance; write Account.using(...) or Account"

    @pytest.mark.parametrize("sources", [Account, "account", 5, EntityKind("x"), Account.using()])
    def test_no_list(self, sources: Any) -> None:
        with pytest.raises(InvalidConfig, match="actors: expected a list"):
            collect(sources)

    def test_nothing(self) -> None:
        assert collect([]) == {}


class TestOutbox:
    def test_keeps_order_up_to_its_limit(self) -> None:
        outbox = Outbox(2)
        first, second = (Account.ref("a"), Deposit(1)), (Account.ref("b"), Deposit(2))
        outbox.add(*first)
        outbox.add(*second)
        with pytest.raises(OutboxLimitExceeded, match=r"2 messages in its outbox; raise max_outbox_messages"):
            outbox.add(*first)
        assert list(outbox) == [first, second]
        assert len(outbox) == 2
        outbox.clear()
        assert (len(outbox), list(outbox)) == (0, [])
        outbox.add(*first)

    def test_zero_is_unbounded(self) -> None:
        outbox = Outbox()
        for _ in range(1_000):
            outbox.add(Account.ref("a"), Deposit(1))
        assert repr(outbox) == "<Outbox 1000 of any number of messages>"

    def test_refuses_what_is_no_message(self) -> None:
        outbox = Outbox()
        with pytest.raises(InvalidEntityId, match="entity: expected an EntityRef such as"):
            outbox.add("account/a", Deposit(1))
        with pytest.raises(UnknownMessageType, match="expected an instance of a Command or a Query"):
            outbox.add(Account.ref("a"), Deposit)
        assert len(outbox) == 0
