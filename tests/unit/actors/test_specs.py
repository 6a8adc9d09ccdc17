"""Actor classes become specs: handlers, names, states, inheritance and what an interruption means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import pytest
from attrs import define, frozen

from atomic_actors.actors._messages import Command, RawMessage
from atomic_actors.actors._specs import Actor, collect, handler
from atomic_actors.base._config import Config, KindConfig
from atomic_actors.base._errors import InvalidConfig, InvalidEntityId, InvalidHandler, InvalidState
from atomic_actors.base._lifecycle import InterruptionPolicy, InterruptionRules
from atomic_actors.base._records import Completed, EntityRef, Park, Retry
from tests.unit.actors.accounts import Account, Balance, Deposit, GetBalance, Ship, only, refused, run

HERE = __name__
S = TypeVar("S")
T = TypeVar("T")


class TestActorClass:
    def test_spec(self) -> None:
        spec = only(Account)
        assert (spec.kind, spec.durable, spec.state_type) == ("account", True, Balance)
        assert set(spec.handlers) == {"Deposit", "Ship", "GetBalance"}
        assert set(spec.by_type) == {Deposit, Ship, GetBalance}
        assert spec.by_type[Deposit] is spec.handlers["Deposit"]
        assert spec.fallback is None
        assert spec.on_activate is None
        assert spec.on_passivate is None
        assert spec.message_types == {"Deposit": Deposit, "Ship": Ship, "GetBalance": GetBalance}
        assert isinstance(spec.make_instance(), Account)
        assert spec.location == f"{Account.__module__}.Account"

    def test_handler_spec(self) -> None:
        deposit, ship, balance = only(Account).handlers.values()
        assert (deposit.name, deposit.message_type, deposit.payload_type) == ("Deposit", Deposit, Deposit)
        assert (deposit.reply_type, deposit.query, deposit.raw, deposit.free) == (int, False, False, False)
        assert deposit.location == f"{Account.__module__}.Account.deposit"
        assert deposit.transactional
        assert not ship.transactional
        assert balance.query
        assert balance.transactional

    @pytest.mark.anyio
    async def test_handlers_run_unbound(self) -> None:
        spec = only(Account)
        account = spec.make_instance()
        account.state = Balance()
        assert await run(spec.by_type[Deposit], account, Deposit(5)) == 5
        assert await run(spec.by_type[GetBalance], account, GetBalance()) == 5
        assert await account.deposit(Deposit(1)) == 6

    def test_a_query_may_be_effectful(self) -> None:
        class Reader(Actor):
            @handler(transactional=False)
            async def read(self, message: GetBalance) -> int:
                return 0

        assert not only(Reader).handlers["GetBalance"].transactional

    def test_ref_needs_no_system(self) -> None:
        assert Account.ref("a-42") == EntityRef("account", "a-42")
        with pytest.raises(InvalidEntityId):
            Account.ref("")
        with pytest.raises(InvalidHandler, match="Actor itself has no kind"):
            Actor.ref("a-42")

    @pytest.mark.parametrize(
        ("class_name", "kind"),
        [
            ("Account", "account"),
            ("BankAccount", "bank_account"),
            ("HTTPServer2", "http_server2"),
            ("A", "a"),
        ],
    )
    def test_kind_is_the_class_name_in_snake_case(self, class_name: str, kind: str) -> None:
        assert type(class_name, (Account,), {}).ref("x").kind == kind

    def test_settings(self) -> None:
        class Timid(Account, durable=False, idle_timeout_s=5, on_dead="park", max_attempts=4, max_depth=7):
            pass

        class Child(Timid, idle_timeout_s=6):
            pass

        spec = only(Child)
        assert (spec.kind, spec.durable) == ("child", False)
        settings = spec.settings
        assert (settings.idle_timeout_s, settings.on_dead, settings.max_attempts, settings.max_depth) == (
            6,
            "park",
            4,
            7,
        )
        assert settings.max_interruptions == Config().max_interruptions
        assert spec.handlers["Ship"].max_attempts == 4

    def test_the_configuration_wins_over_the_class(self) -> None:
        config = Config(max_interruptions=9, kinds={"account": KindConfig(max_attempts=2, on_dead="park")})
        spec = only(Account, config)
        assert spec.handlers["Ship"].max_attempts == 2
        assert spec.settings.on_dead == "park"
        assert spec.settings.max_interruptions == 9

    def test_a_slotted_actor_keeps_what_was_said(self) -> None:
        @define
        class Ledger(Actor[Balance], kind="general-ledger", durable=False, max_attempts=3):
            currency: str

            @handler
            async def deposit(self, message: Deposit) -> int:
                self.state = Balance(message.amount)
                return message.amount

        spec = only(Ledger.using(currency="EUR"))
        assert (spec.kind, spec.durable, spec.settings.max_attempts) == ("general-ledger", False, 3)
        assert Ledger.ref("x").kind == "general-ledger"
        ledger = spec.make_instance()
        assert type(ledger) is Ledger
        assert ledger.currency == "EUR"
        ledger.state = Balance(3)
        assert ledger.state == Balance(3)

    def test_messages_may_be_local_or_defined_later(self) -> None:
        @frozen
        class Local(Command[int]):
            pass

        class Early(Actor):
            @handler
            async def local(self, message: Local) -> int:
                return 1

            @handler(max_attempts=2)
            async def later(self, message: DefinedLater) -> int:
                return 1

        spec = only(Early)
        assert set(spec.by_type) == {Local, DefinedLater}
        assert spec.handlers["DefinedLater"].max_attempts == 2

    def test_generic_messages(self) -> None:
        @frozen
        class Put(Command[T], Generic[T]):
            value: T

        class Store(Actor):
            @handler
            async def put(self, message: Put[int]) -> int:
                return message.value

        spec = only(Store).by_type[Put]
        assert (spec.payload_type, spec.reply_type) == (Put[int], int)

    def test_hooks(self) -> None:
        class Hooked(Account):
            async def on_activate(self) -> None:
                pass

        spec = only(Hooked)
        assert spec.on_activate is Hooked.on_activate
        assert spec.on_passivate is None

        class Blocking(Account):
            def on_activate(self) -> None:
                pass

        assert "Blocking.on_activate: on_activate must be written `async def`" in refused(Blocking)


@frozen
class DefinedLater(Command[int]):
    pass


class TestInheritance:
    def test_a_subclass_is_a_kind_of_its_own(self) -> None:
        class Savings(Account):
            @handler
            async def later(self, message: DefinedLater) -> int:
                return 1

        specs = collect([Account, Savings])
        assert set(specs["savings"].handlers) == {"Deposit", "Ship", "GetBalance", "DefinedLater"}
        assert set(specs["account"].handlers) == {"Deposit", "Ship", "GetBalance"}
        assert specs["savings"].state_type is Balance

    @pytest.mark.anyio
    async def test_an_override_keeps_the_decorator(self) -> None:
        class Savings(Account):
            async def deposit(self, message: Deposit) -> int:
                return -1

        spec = only(Savings).by_type[Deposit]
        assert spec.transactional
        assert await run(spec, Savings(), Deposit(1)) == -1

    def test_an_override_may_say_something_else(self) -> None:
        class Savings(Account):
            @handler(max_attempts=7)
            async def deposit(self, message: Deposit) -> int:
                return -1

        spec = only(Savings).by_type[Deposit]
        assert (spec.transactional, spec.max_attempts) == (False, 7)

    def test_none_takes_a_handler_away(self) -> None:
        class Savings(Account):
            deposit = None

        assert set(only(Savings).handlers) == {"Ship", "GetBalance"}

    def test_generic_bases(self) -> None:
        class Base(Actor[S]):
            @handler
            async def ship(self, message: Ship) -> str:
                return ""

        class Concrete(Base[Balance]):
            pass

        assert only(Concrete).state_type is Balance
        assert refused(Base).endswith(
            "Base leaves the type of its state open; derive a class that names it: class ...(Base[Balance])"
        )

    def test_abstract_bases(self) -> None:
        class Base(Actor[Balance], ABC):
            @handler
            @abstractmethod
            async def ship(self, message: Ship) -> str: ...

        class Concrete(Base):
            async def ship(self, message: Ship) -> str:
                return "done"

        assert set(only(Concrete).handlers) == {"Ship"}
        assert refused(Base, InvalidConfig).endswith("is abstract ('ship'); list a class that defines them")


class TestState:
    def test_none(self) -> None:
        class Plain(Actor):
            @handler
            async def ship(self, message: Ship) -> str:
                return ""

        class Said(Plain, Actor[None]):
            pass

        assert only(Plain).state_type is None
        assert only(Said).state_type is None

    def test_any_callable_will_do(self) -> None:
        class Tags(Actor[dict[str, int]]):
            @handler
            async def ship(self, message: Ship) -> str:
                return ""

        assert only(Tags).state_type == dict[str, int]

    def test_that_needs_arguments(self) -> None:
        @define
        class Needy:
            amount: int

        class Bad(Actor[Needy]):
            @handler
            async def ship(self, message: Ship) -> str:
                return ""

        text = refused(Bad, InvalidState)
        assert "Bad: the state " in text
        assert "Needy must be constructible without arguments (" in text
        assert text.endswith("'amount'); give every field a default")


class TestNames:
    @pytest.mark.anyio
    async def test_by_name(self) -> None:
        class Warehouse(Actor):
            @handler("ReserveStock")
            async def reserve(self, message: RawMessage) -> Any:
                return message.payload

            @handler("Count", max_attempts=3)
            async def count(self, message: dict[str, int]) -> int:
                return len(message)

            @handler("Rename")
            async def rename(self, message: Balance) -> int:
                return message.amount

            @handler("Unannotated")
            async def unannotated(self, message):
                return message.name

            @handler("*")
            async def rest(self, message: RawMessage) -> str:
                return message.name

        spec = only(Warehouse)
        reserve, count, rename, unannotated = spec.handlers.values()
        assert (reserve.raw, reserve.message_type, reserve.payload_type) == (True, None, Any)
        assert (count.raw, count.message_type, count.payload_type) == (False, None, dict[str, int])
        assert (rename.raw, rename.message_type, rename.payload_type) == (False, Balance, Balance)
        assert unannotated.raw
        assert {s.reply_type for s in spec.handlers.values()} == {Any}
        assert spec.by_type == {}
        assert spec.message_types == {"Count": dict[str, int], "Rename": Balance}
        assert spec.fallback is not None
        assert spec.handler_for("Nobody") is spec.fallback
        assert spec.handler_for("Count") is count
        assert "*" not in spec.handlers
        assert await run(spec.fallback, spec.make_instance(), RawMessage("Nobody")) == "Nobody"

    def test_without_fallback_nobody_handles_it(self) -> None:
        assert only(Account).handler_for("Nobody") is None

    def test_a_name_and_its_message_class_agree(self) -> None:
        class Fine(Actor):
            @handler("Ship")
            async def ship(self, message: Ship) -> str:
                return ""

        class Wrong(Actor):
            @handler("ship_it")
            async def ship(self, message: Ship) -> str:
                return ""

        assert only(Fine).by_type[Ship].name == "Ship"
        assert refused(Wrong).endswith(
            f"@handler('ship_it') takes {Ship.__module__}.Ship, whose wire name is 'Ship'; leave the name out, or declare the "
            "class with name='ship_it'"
        )

    def test_two_handlers_of_one_name(self) -> None:
        class Twice(Account):
            @handler
            async def again(self, message: Deposit) -> int:
                return 0

        assert refused(Twice) == (
            f"kind 'twice': both {Account.__module__}.Account.deposit and {HERE}.TestNames.test_two_handlers_of_one_name."
            "<locals>.Twice.again handle 'Deposit'; one message has one handler"
        )

    def test_two_fallbacks(self) -> None:
        class Twice(Actor):
            @handler("*")
            async def first(self, message: RawMessage) -> None: ...

            @handler("*")
            async def second(self, message: RawMessage) -> None: ...

        assert "Twice.first and " in refused(Twice)

    def test_two_message_classes_of_one_name(self) -> None:
        @frozen
        class Pay(Command[int], name="Deposit"):
            pass

        class Twice(Account):
            @handler
            async def pay(self, message: Pay) -> int:
                return 0

        text = refused(Twice)
        assert text.startswith(
            f"kind 'twice': {Deposit.__module__}.Deposit (handled by {Account.__module__}.Account.deposit) and "
        )
        assert text.endswith("have the same wire name 'Deposit'; give one of them another with name=")


class TestInterruptions:
    def test_policies(self) -> None:
        async def look(self: Any, message: Ship) -> Completed[str] | Retry | Park:
            return Retry()

        class Shop(Actor, on_interrupted="retry", max_interruptions=5, on_dead="park"):
            async def check(self, message: Any) -> Completed[Any] | Retry | Park:
                return Park()

            @handler(on_interrupted="dead_letter")
            async def deposit(self, message: Deposit) -> int:
                return 0

            @handler(on_interrupted="check")
            async def ship(self, message: Ship) -> str:
                return ""

            @handler
            async def balance(self, message: GetBalance) -> int:
                return 0

            @handler(on_interrupted=check)
            async def later(self, message: DefinedLater) -> int:
                return 0

            @handler("*")
            async def rest(self, message: RawMessage) -> None: ...

        spec = only(Shop)
        assert spec.policy() == "\nDeposit=edp5\nShip=emp5\nGetBalance=tdp5\nDefinedLater=emp5\n*=erp5\n"
        assert spec.handlers["Ship"].recover is Shop.check
        assert spec.handlers["DefinedLater"].recover is Shop.check
        assert spec.handlers["Deposit"].recover is None
        # What the configuration says about the kind wins over the class, not over a handler.
        changed = only(Shop, Config(kinds={"shop": KindConfig(on_interrupted="dead_letter")}))
        assert changed.policy().endswith("*=edp5\n")
        assert changed.handlers["Ship"].policy is InterruptionPolicy.METHOD

    def test_defaults_of_the_policy_text(self) -> None:
        text = only(Account).policy()
        assert text == "\nDeposit=tdc3\nShip=edc3\nGetBalance=tdc3\n*=edc3\n"
        stamps = dict(line.split("=") for line in text.split())
        assert InterruptionRules.decode(stamps["Ship"]) == InterruptionRules(
            False, InterruptionPolicy.DEAD_LETTER, False, 3
        )
        retrying = only(Account, Config(on_interrupted="retry"))
        assert "\nShip=erc3\n" in retrying.policy()
        assert "\nDeposit=tdc3\n" in retrying.policy()

    def test_a_method_for_the_whole_kind(self) -> None:
        class Shop(Account, on_interrupted="check"):
            async def check(self, message: Any) -> Park:
                return Park()

        class Shop2(Shop):
            async def check(self, message: Any) -> Park:
                return Park()

        spec = only(Shop)
        assert spec.by_type[Ship].recover is Shop.check
        assert only(Shop2).by_type[Ship].recover is Shop2.check
        assert spec.by_type[Deposit].recover is None
        overridden = only(Shop, Config(kinds={"shop": KindConfig(on_interrupted="retry")}))
        assert overridden.by_type[Ship].policy is InterruptionPolicy.RETRY

    def test_a_subclass_may_go_back_to_a_word(self) -> None:
        class Shop(Account, on_interrupted="check"):
            async def check(self, message: Any) -> Park:
                return Park()

        class Careless(Shop, on_interrupted="retry"):
            pass

        assert only(Careless).by_type[Ship].policy is InterruptionPolicy.RETRY

    def test_a_method_that_is_not_there(self) -> None:
        class Shop(Actor):
            @handler(on_interrupted="chekc")
            async def ship(self, message: Ship) -> str:
                return ""

        text = refused(Shop)
        assert (
            "Shop.ship: on_interrupted='chekc' is neither 'dead_letter' nor 'retry' nor a method of " in text
        )

        class Other(Account, on_interrupted="missing"):
            pass

        assert "Other: on_interrupted='missing' is neither" in refused(Other)

    def test_a_method_that_is_not_async(self) -> None:
        class Shop(Actor):
            def check(self, message: Ship) -> Park:
                return Park()

            @handler(on_interrupted="check")
            async def ship(self, message: Ship) -> str:
                return ""

        assert "Shop.check: an on_interrupted method must be written `async def`" in refused(Shop)

    def test_not_for_transactional_handlers(self) -> None:
        class Shop(Actor):
            @handler(transactional=True, on_interrupted="retry")
            async def ship(self, message: Ship) -> str:
                return ""

        assert "Shop.ship: on_interrupted does not apply to a transactional handler" in refused(Shop)
