"""Every mutant there is."""

from __future__ import annotations

from typing import Final

from tests.mutation import lua_leases, lua_people, lua_senders, lua_settling, lua_turns, memory, transitions
from tests.mutation.mutant import Mutant

MUTANTS: Final[tuple[Mutant, ...]] = (
    *transitions.MUTANTS,
    *lua_senders.MUTANTS,
    *lua_turns.MUTANTS,
    *lua_settling.MUTANTS,
    *lua_people.MUTANTS,
    *lua_leases.MUTANTS,
    *memory.MUTANTS,
)
