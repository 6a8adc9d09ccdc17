from __future__ import annotations

import re
import shutil
from pathlib import Path

import attrs
import pytest

import atomic_actors.base._errors as _errors
from atomic_actors.base._config import Config
from atomic_actors.base._errors import UsageError
from atomic_actors.base._lifecycle import TRANSITIONS
from atomic_actors.tools.codegen import _transitions, find_root, generated_files, stale_files
from atomic_actors.tools.codegen.__main__ import main
from atomic_actors.tools.codegen._files import ENCODERS_PATH, LUA_FOLDER, replace_block, replace_lua_blocks

MARKERS = ("<!-- begin -->", "<!-- end -->")


HEADER = f"{LUA_FOLDER}/00_header.lua"
TURNS = f"{LUA_FOLDER}/60_turns.lua"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(find_root() / LUA_FOLDER, tmp_path / LUA_FOLDER)
    shutil.copy(find_root() / ENCODERS_PATH, tmp_path / ENCODERS_PATH)
    edit(tmp_path / HEADER, 'absent = { append = "enqueued" },', "absent = {},")
    edit(tmp_path / TURNS, "local run_limit = ", "local limit = ")
    edit(tmp_path / ENCODERS_PATH, '        b"take",\n', '        b"give",\n')
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_writes_everything_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--root", str(root)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{name} is stale; run python -m atomic_actors.tools.codegen"
        for name in (
            *(HEADER, TURNS, ENCODERS_PATH),
            *("docs/configuration.md", "docs/message-life.md", "docs/errors.md"),
        )
    ]
    assert main(["--root", str(root)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert main(["--check", "--root", str(root)]) == 0
    assert main(["--root", str(root)]) == 0
    assert capsys.readouterr().out == ""


def test_check_names_only_what_is_stale(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--root", str(root)])
    capsys.readouterr()
    page = root / "docs/configuration.md"
    page.write_text(page.read_text().replace("2.0", "3.0"))
    assert main(["--check", "--root", str(root)]) == 1
    assert (
        capsys.readouterr().err
        == "docs/configuration.md is stale; run python -m atomic_actors.tools.codegen\n"
    )
    assert "3.0" in page.read_text()


def test_what_people_wrote_around_a_block_stays(root: Path) -> None:
    edit(root / HEADER, "-- <generated: transitions>\n", "-- Before it.\n-- <generated: transitions>\n")
    main(["--root", str(root)])
    assert (
        "-- Before it.\n-- <generated: transitions>\nlocal TRANSITIONS = {\n" in (root / HEADER).read_text()
    )
    page = root / "docs/message-life.md"
    page.write_text(page.read_text() + "\nMore by hand.\n")
    assert stale_files(generated_files(root)) == []
    real = find_root()
    for name in (TURNS, ENCODERS_PATH):
        assert (root / name).read_text() == (real / name).read_text()


def test_a_step_that_no_part_reads(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root / TURNS, "-- <generated: read take>", "-- <generated: read defer>")
    assert main(["--root", str(root)]) == 2
    assert capsys.readouterr().err == f"no file of {LUA_FOLDER} has the generated block read take\n"


def test_a_block_that_there_is_none_of(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root / TURNS, "-- <generated: read take>", "-- <generated: take>")
    assert main(["--root", str(root)]) == 2
    assert capsys.readouterr().err == "there is no generated block 'take'\n"


@pytest.mark.parametrize(
    "text",
    [
        "-- <generated: one>\n",
        "-- </generated>\n",
        "-- <generated: one>\n-- <generated: two>\n-- </generated>\n",
        "-- <generated: one>\n-- </generated>\n-- </generated>\n",
    ],
)
def test_lost_lua_markers(text: str) -> None:
    with pytest.raises(UsageError, match=r"part\.lua must have a line '-- </generated>' after each begin"):
        replace_lua_blocks(text, lambda name: name, "part.lua")


def test_a_lua_block_has_the_indent_of_its_marker() -> None:
    text = "  -- <generated: one>\n  old\n  -- </generated>\n-- <generated: two>\n-- </generated>\n"
    made = replace_lua_blocks(text, lambda name: f"{name}\nmore", "part.lua")
    assert made == (
        "  -- <generated: one>\n  one\n  more\n  -- </generated>\n-- <generated: two>\ntwo\nmore\n-- </generated>\n"
    )


@pytest.mark.parametrize(
    "text",
    ["", "<!-- begin -->\n", "<!-- end -->\n<!-- begin -->\n", "<!-- begin -->\n" * 2 + "<!-- end -->"],
)
def test_lost_markers(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        replace_block(text, MARKERS, "new", "page.md")
    assert (
        str(caught.value)
        == "page.md must have the line '<!-- begin -->' once, and after it '<!-- end -->' once"
    )


def test_the_lua_table_has_every_edge() -> None:
    state = ""
    found: dict[str, dict[str, str]] = {}
    for line in _transitions.lua_table().splitlines()[1:-1]:
        opened = re.match(r"  (\w+) = \{", line)
        if opened:
            state = opened[1]
            found[state] = {}
        found[state].update(re.findall(r'(\w+) = "(\w+)"', line))
    assert found == {str(s): {str(e): str(n) for e, n in edges.items()} for s, edges in TRANSITIONS.items()}


def test_the_diagram_has_every_edge() -> None:
    arrows = re.findall(r"(\S+) --> (\S+): (.+)", _transitions.diagram())
    found = {(source, event, target) for source, target, events in arrows for event in events.split(" / ")}
    assert found == {
        ("[*]" if state.value == "absent" else state.name, str(event), target.name)
        for state, edges in TRANSITIONS.items()
        for event, target in edges.items()
    }


def test_the_pages_name_everything(root: Path) -> None:
    texts = {file.name: file.text for file in generated_files(root)}
    for attribute in attrs.fields(Config):
        assert f"| `{attribute.name}` |" in texts["docs/configuration.md"]
    for name in _errors.__all__:
        thing = getattr(_errors, name)
        if isinstance(thing, type) and thing is not _errors.AtomicActorsError:
            assert texts["docs/errors.md"].count(f"| `{thing.code}` | `{name}` |") == 1
    for line in texts["docs/configuration.md"].splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 7, line


def test_an_error_without_a_group_is_noticed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atomic_actors.tools.codegen import _pages

    monkeypatch.setattr(_pages, "_ERROR_GROUPS", _pages._ERROR_GROUPS[:-1])
    with pytest.raises(
        UsageError, match="has no group for DrainTimeout, EmbeddedServerError, StoreIncompatible, StoreUnsafe"
    ):
        generated_files(root)


def test_the_files_of_this_source_tree_are_up_to_date() -> None:
    assert [file.name for file in stale_files(generated_files(find_root()))] == []


def test_outside_a_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atomic_actors.tools.codegen import _files

    copy = tmp_path / "site/lib/atomic_actors/tools/codegen/_files.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(_files.__file__, copy)
    monkeypatch.setattr(_files, "__file__", str(copy))
    with pytest.raises(
        UsageError, match="is not a source tree of atomic_actors; run this from a checkout, or give --root"
    ):
        find_root()
