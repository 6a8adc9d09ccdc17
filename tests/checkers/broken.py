"""Where histories are kept that break one promise each."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from tests.checkers.story import Story

Tell = Callable[[Story], None]

#: By rule and way to break it; whether it is broken only if the history is healed.
WRONG: dict[tuple[str, str], tuple[Tell, bool]] = {}


def breaks(rule: str, *, when_healed: bool = False) -> Callable[[Tell], Tell]:
    def note(tell: Tell) -> Tell:
        WRONG[rule, tell.__name__] = (tell, when_healed)
        return tell

    return note


def change_last(story: Story, kind: type, **fields: object) -> None:
    """Change the last record of a kind."""
    records = story.history.records
    position = max(place for place, record in enumerate(records) if isinstance(record, kind))
    records[position] = replace(records[position], **fields)
