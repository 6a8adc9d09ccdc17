"""The transition table of `_lifecycle`, as Lua and as a diagram."""

from __future__ import annotations

from typing import Final

from atomic_actors.base._lifecycle import FINAL_STATES, TRANSITIONS, State

__all__ = ("PAGE_MARKERS", "diagram", "lua_table")

PAGE_MARKERS: Final = ("<!-- generated: transitions -->", "<!-- /generated -->")

_LINE_LENGTH: Final = 100


def lua_table() -> str:
    """`local TRANSITIONS = {...}`: for each state, the next state for each event."""
    lines = ["local TRANSITIONS = {"]
    for state, edges in TRANSITIONS.items():
        pairs = [f'{event} = "{following}"' for event, following in edges.items()]
        line = f"  {state} = {{ {', '.join(pairs)} }}," if pairs else f"  {state} = {{}},"
        if len(line) <= _LINE_LENGTH:
            lines.append(line)
        else:
            lines += [f"  {state} = {{", *(f"    {pair}," for pair in pairs), "  },"]
    return "\n".join([*lines, "}"])


def diagram() -> str:
    """A Mermaid state diagram; events that lead to the same state share an arrow."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for state, edges in TRANSITIONS.items():
        by_target: dict[State, list[str]] = {}
        for event, following in edges.items():
            by_target.setdefault(following, []).append(str(event))
        source = "[*]" if state is State.ABSENT else state.name
        lines += [
            f"    {source} --> {target.name}: {' / '.join(events)}" for target, events in by_target.items()
        ]
    lines += [f"    {state.name} --> [*]" for state in TRANSITIONS if state in FINAL_STATES]
    return "\n".join([*lines, "```"])
