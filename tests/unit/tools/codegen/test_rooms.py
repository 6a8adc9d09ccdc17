"""The picture of the rooms, on small source trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from atomic_actors.base._errors import UsageError
from atomic_actors.tools.codegen._rooms import rooms_section


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        init = path.parent / "__init__.py"
        if path.parent != root and not init.exists():
            init.write_text(f'"""The room {path.parent.name}."""\n')
        path.write_text(text)
    return root


def arrows(section: str) -> set[str]:
    return {line.strip().replace("room_", "") for line in section.splitlines() if "-->" in line}


def test_an_import_is_an_arrow_and_a_detour_is_left_out(tmp_path: Path) -> None:
    source = tree(
        tmp_path,
        {
            "low/_a.py": "",
            "middle/_b.py": "from atomic_actors.low._a import A",
            "high/_c.py": "from atomic_actors.low._a import A\nfrom atomic_actors.middle import _b",
        },
    )
    section = rooms_section(source)
    assert arrows(section) == {"middle --> low", "high --> middle"}
    assert "| `low/` | The room low. |" in section


def test_a_module_above_the_rooms_of_its_folder_is_a_box_of_its_own(tmp_path: Path) -> None:
    source = tree(
        tmp_path,
        {
            "node/_all.py": "from atomic_actors.node._some import x",
            "node/_some.py": "from atomic_actors.node.inner._part import x",
            "node/_ground.py": "",
            "node/inner/_part.py": "from atomic_actors.node._ground import y",
        },
    )
    assert arrows(rooms_section(source)) == {
        "node__all --> node__some",
        "node__some --> node_inner",
        "node_inner --> node",
    }


def test_what_a_room_offers_from_its_init_counts(tmp_path: Path) -> None:
    source = tree(tmp_path, {"low/_a.py": "", "high/_b.py": "from atomic_actors.low import offered"})
    assert arrows(rooms_section(source)) == {"high --> low"}


def test_a_circle_is_refused(tmp_path: Path) -> None:
    source = tree(
        tmp_path,
        {
            "one/_a.py": "from atomic_actors.two._b import x",
            "two/_b.py": "from atomic_actors.three._c import x",
            "three/_c.py": "from atomic_actors.one._a import x",
        },
    )
    with pytest.raises(UsageError, match="rooms import each other: one > two > three > one"):
        rooms_section(source)


def test_a_room_that_does_not_say_what_it_is_for_is_refused(tmp_path: Path) -> None:
    source = tree(tmp_path, {"one/_a.py": ""})
    (source / "one" / "__init__.py").write_text("")
    with pytest.raises(UsageError, match=r"one/__init__\.py must say in one line what the room is for"):
        rooms_section(source)
