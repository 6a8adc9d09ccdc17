"""Mutants of the transition table and of the rules beside it. Lua's table is generated from the broken one."""

from __future__ import annotations

from typing import Final

from tests.mutation.mutant import LUA_HEADER, TABLE, Guard, Mutant, lua_part

_EVERY: Final = "test_every_event_in_every_state"


def _without(event: str, old: str, *tests: str) -> Mutant:
    name, protects = f"table.without_{event}", f"`{event}` can happen"
    new = "State.ABSENT: {}" if event == "append" else ""
    return Mutant(name, Guard.TRANSITION, TABLE, "", old, new, protects, (*tests, _EVERY))


def _with(state: str, event: str, leads_to: str, old: str, new: str) -> Mutant:
    name = f"table.with_{event}_of_{state}"
    protects = f"a message that is {state} cannot {event}"
    edge = new.format(f"Event.{event.upper()}: State.{leads_to.upper()}")
    return Mutant(name, Guard.TRANSITION, TABLE, "", old, edge, protects, (_EVERY,))


def _with_in_lua(event: str, leads_to: str) -> Mutant:
    old = 'complete = "completed",\n'
    return Mutant(
        f"lua.with_{event}_of_dispatched",
        Guard.TRANSITION,
        LUA_HEADER,
        "",
        f"    {old}",
        f'    {old}    {event} = "{leads_to}",\n',
        f"a message that is dispatched cannot {event}",
        ("test_verdicts_that_cannot_happen",),
    )


def _counted_as(function: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(
        f"lua.{function}.counts",
        Guard.TRANSITION,
        lua_part(function),
        function,
        old,
        new,
        "what happened is what the books say",
        tests,
    )


def _rule(name: str, guard: Guard, function: str, old: str, new: str, protects: str, *tests: str) -> Mutant:
    return Mutant(f"rule.{name}", guard, TABLE, function, old, new, protects, tests)


_LEGAL: Final = (
    _without("append", "State.ABSENT: {Event.APPEND: State.ENQUEUED}", "test_first_in_first_out"),
    _without("take", "Event.TAKE: State.DISPATCHED,", "test_first_in_first_out"),
    _without("withdraw", "Event.WITHDRAW: State.WITHDRAWN,", "test_withdraw"),
    _without("expire", "Event.EXPIRE: State.EXPIRED,", "test_expire"),
    _without("complete", "Event.COMPLETE: State.COMPLETED,", "test_ending"),
    _without("refuse", "Event.REFUSE: State.COMPLETED,", "test_ending"),
    _without("retry", "Event.RETRY: State.ENQUEUED,", "test_ending"),
    _without("fail", "Event.FAIL: State.FAILED,", "test_ending"),
    _without("requeue", "Event.REQUEUE: State.ENQUEUED,", "test_ending"),
    _without("interrupt", "Event.INTERRUPT: State.INTERRUPTED,", "test_ending", "test_interrupt"),
)

_TAKE: Final = "        Event.TAKE: State.DISPATCHED,\n"
_COMPLETE: Final = "        Event.COMPLETE: State.COMPLETED,\n"

_ILLEGAL: Final = (
    _with("enqueued", "complete", "completed", _TAKE, _TAKE + "        {},\n"),
    _with("enqueued", "fail", "failed", _TAKE, _TAKE + "        {},\n"),
    _with("enqueued", "interrupt", "interrupted", _TAKE, _TAKE + "        {},\n"),
    _with("dispatched", "take", "enqueued", _COMPLETE, _COMPLETE + "        {},\n"),
    _with("dispatched", "withdraw", "withdrawn", _COMPLETE, _COMPLETE + "        {},\n"),
    _with("dispatched", "expire", "expired", _COMPLETE, _COMPLETE + "        {},\n"),
    _with("completed", "retry", "enqueued", "State.COMPLETED: {}", "State.COMPLETED: {{{}}}"),
    _with("failed", "take", "dispatched", "State.FAILED: {}", "State.FAILED: {{{}}}"),
    _with("interrupted", "requeue", "enqueued", "State.INTERRUPTED: {}", "State.INTERRUPTED: {{{}}}"),
    _with("withdrawn", "take", "dispatched", "State.WITHDRAWN: {}", "State.WITHDRAWN: {{{}}}"),
    _with("expired", "take", "dispatched", "State.EXPIRED: {}", "State.EXPIRED: {{{}}}"),
    # Where the tests' own table is right, too.
    _with_in_lua("take", "enqueued"),
    _with_in_lua("withdraw", "withdrawn"),
    _with_in_lua("expire", "expired"),
    _with_in_lua("append", "enqueued"),
)

_INTERRUPT: Final = 'count(P, "dispatched", "interrupt", 1)'
_FAIL: Final = 'count(P, "dispatched", "fail", 1)'
_WITHDRAW: Final = 'count(P, "enqueued", "withdraw", 1)'
_EXPIRE: Final = 'count(P, "enqueued", "expire", 1)'

_WRONG_END: Final = (
    _counted_as("interrupt", _INTERRUPT, _FAIL, "test_interrupt"),
    _counted_as("settle_lost", _INTERRUPT, _FAIL, "test_an_effect_that_may_have_happened_is_dead"),
    _counted_as("withdraw", _WITHDRAW, _EXPIRE, _EVERY),
    _counted_as("expire", _EXPIRE, _WITHDRAW, _EVERY),
    Mutant(
        "table.complete_fails",
        Guard.TRANSITION,
        TABLE,
        "",
        "Event.COMPLETE: State.COMPLETED,",
        "Event.COMPLETE: State.FAILED,",
        "a message that completed is completed",
        ("test_ending", "test_a_large_batch"),
    ),
    Mutant(
        "table.interrupt_enqueues",
        Guard.TRANSITION,
        TABLE,
        "",
        "Event.INTERRUPT: State.INTERRUPTED,",
        "Event.INTERRUPT: State.ENQUEUED,",
        "what must not run again is not put back",
        ("test_ending", "test_interrupt"),
    ),
)

_RULES: Final = (
    _rule(
        "may_leave_unrun",
        Guard.WITHDRAW,
        "may_leave_unrun",
        "return attempts == 0",
        "return True",
        "a message that was tried is not withdrawn",
        "test_withdraw_too_late",
    ),
    _rule(
        "interruption.limit",
        Guard.INTERRUPTION,
        "decide_interruption",
        "interruptions >= stamp.max_interruptions > 0 or recovering",
        "recovering",
        "a message is not cut off for ever",
        "test_interrupt",
    ),
    _rule(
        "interruption.limit_exact",
        Guard.INTERRUPTION,
        "decide_interruption",
        "interruptions >= stamp",
        "interruptions > stamp",
        "the limit of interruptions is exact",
        "test_interrupt",
    ),
    _rule(
        "interruption.unlimited",
        Guard.INTERRUPTION,
        "decide_interruption",
        "stamp.max_interruptions > 0 or",
        "stamp.max_interruptions or",
        "a limit of 0 is none",
        "test_interrupt",
    ),
    _rule(
        "interruption.recovering",
        Guard.INTERRUPTION,
        "decide_interruption",
        " > 0 or recovering:",
        " > 0:",
        "a recovery that is cut off is not tried again",
        "test_interrupt",
    ),
    _rule(
        "interruption.transactional",
        Guard.INTERRUPTION,
        "decide_interruption",
        "if stamp.transactional or stamp",
        "if stamp",
        "a transactional turn had no effects and runs again",
        "test_interrupt",
    ),
    _rule(
        "interruption.dead_letter",
        Guard.INTERRUPTION,
        "decide_interruption",
        "return Settlement.RECOVER\n    return Settlement.INTERRUPT",
        "return Settlement.RECOVER\n    return Settlement.REQUEUE",
        "an effectful handler is not run again unnoticed",
        "test_interrupt",
    ),
)

MUTANTS: Final = (*_LEGAL, *_ILLEGAL, *_WRONG_END, *_RULES)
