"""The parts of the Lua library, and the limits that Lua sets them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import atomic_actors.journal.redis as package
from atomic_actors.journal.redis._forms import FORMS
from atomic_actors.journal.redis._library import LIBRARY, library_source
from tests.lua_bytecode import Function, compile_lua

PARTS = sorted((Path(package.__file__).parent / "lua").glob("*.lua"))

#: Lua refuses more than 200 locals and more than 60 upvalues of a function.
LOCALS_MAX = 150
UPVALUES_MAX = 50
#: Names that every part can use.
TOP_NAMES_MAX = 100
FUNCTION_LINES_MAX = 70
PART_LINES_MAX = 600

GLOBALS = {
    *("error", "ipairs", "math", "pairs", "pcall", "redis", "select", "string", "table", "tonumber"),
    *("tostring", "type", "unpack"),
}


def compile_library() -> Function:
    # Only the store knows what to make of the first line.
    return compile_lua(library_source().decode().replace("#!", "--", 1))


def check_limits(function: Function) -> None:
    for one in function.walk():
        assert one.count_locals() < LOCALS_MAX, f"{one.count_locals()} locals, lines {one.first_line} on"
        assert len(one.upvalues) < UPVALUES_MAX, f"{len(one.upvalues)} upvalues, lines {one.first_line} on"


def test_the_parts_are_joined_in_the_order_of_their_names() -> None:
    texts = [part.read_bytes() for part in PARTS]
    assert PARTS[0].name == "00_header.lua"
    assert library_source() == b"\n".join(texts)
    assert re.match(rb"#!lua name=%b\n-- revision: \d+\n" % LIBRARY.encode(), library_source())


def test_the_library_keeps_away_from_the_limits_of_lua() -> None:
    library = compile_library()
    check_limits(library)
    assert 0 < len(library.last_names()) <= TOP_NAMES_MAX


def test_too_many_locals_are_found() -> None:
    names = ", ".join(f"name_{number}" for number in range(LOCALS_MAX))
    inside = f"local function f()\n  do\n    local {names}\n  end\nend\n"
    for text in (f"local {names}\n", f"do\n  local {names}\nend\n", inside):
        with pytest.raises(AssertionError, match=f"{LOCALS_MAX} locals"):
            check_limits(compile_lua(text))
    check_limits(compile_lua(f"do\n  local {names.partition(', ')[2]}\nend\nlocal other\n"))


def test_too_many_names_at_the_top_are_found() -> None:
    library = library_source().decode().replace("#!", "--", 1)
    names = ", ".join(f"name_{number}" for number in range(TOP_NAMES_MAX))
    assert len(compile_lua(f"do\n  local {names}\nend\n{library}").last_names()) <= TOP_NAMES_MAX
    assert len(compile_lua(f"{library}\nlocal {names}\n").last_names()) > TOP_NAMES_MAX


def test_too_many_upvalues_are_found() -> None:
    names = [f"name_{number}" for number in range(UPVALUES_MAX)]
    text = f"local {', '.join(names)}\nlocal function f()\n  return {' .. '.join(names)}\nend\n"
    with pytest.raises(AssertionError, match=f"{UPVALUES_MAX} upvalues"):
        check_limits(compile_lua(text))


def test_no_name_is_misspelt() -> None:
    """Where a library uses a global that there is none of, the store tells only when it runs there."""
    used = frozenset[str]().union(*(function.globals for function in compile_library().walk()))
    assert used == GLOBALS


def test_functions_and_parts_are_short() -> None:
    for function in compile_library().functions:
        lines = function.last_line - function.first_line + 1
        assert lines <= FUNCTION_LINES_MAX, f"{lines} lines, lines {function.first_line} on"
    for part in PARTS:
        assert len(part.read_text().splitlines()) <= PART_LINES_MAX, part.name


@pytest.mark.parametrize("part", PARTS[1:], ids=lambda part: part.stem)
def test_a_part_is_one_block(part: Path) -> None:
    outside = [line for line in part.read_text().splitlines() if line and not line.startswith(("  ", "--"))]
    assert outside[-2:] == ["do", "end"]
    assert all(line.startswith("local ") for line in outside[:-2])


def test_each_step_is_registered_once_by_a_part() -> None:
    registered = re.findall(rb"^  STEPS\.(\w+)\.run = \w+$", library_source(), re.MULTILINE)
    # A push is no step of its own.
    assert sorted(registered) == sorted(form.name.encode() for form in FORMS if form.records)
    for part in PARTS:
        if part.stem.startswith(("5", "60", "61", "62", "63", "64")):
            assert "STEPS." in part.read_text(), part.name


def test_keys_and_arguments_of_steps_have_names() -> None:
    """Places counted from the step's first key or argument stand only in what is generated."""
    written = re.sub(rb"-- <generated: .*?-- </generated>", b"", library_source(), flags=re.DOTALL)
    library_without_calls = written[: written.index(b"-- The calls: ")]
    assert re.findall(rb"\b[AK]\[(?:a|k|key_at)\b[^\]]*\]", library_without_calls) == []
