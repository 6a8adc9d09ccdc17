"""Each test that the page of failures names is there, and each failure names one."""

from __future__ import annotations

import ast
import re
from functools import cache

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "attacks.md"
#: `file::test` or `file::Class::test`.
NAMED = re.compile(r"`([\w/.]+\.py)((?:::\w+)+)`")


def rows() -> list[str]:
    """The rows of the tables, without their heads."""
    lines = PAGE.read_text("utf-8").splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith("| failure |")]


@cache
def names_in(file: str) -> set[str]:
    """The names of a file's tests, as the page writes them; none for a file that is not there."""
    path = ROOT / file
    if not path.is_file():
        return set()
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"::{node.name}::{each.name}" for each in node.body if is_function(each)}  # type: ignore[attr-defined]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(f"::{node.name}")
    return {name for name in found if name.rpartition("::")[2].startswith("test_")}


def is_function(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def test_each_named_test_exists() -> None:
    named = NAMED.findall(PAGE.read_text("utf-8"))
    assert len(named) > 60
    assert not [f"{file}{test}" for file, test in named if test not in names_in(file)]


def test_each_failure_names_a_test() -> None:
    assert len(rows()) > 40
    assert not [row for row in rows() if not NAMED.search(row)]
    assert not [row for row in rows() if row.count("`") % 2 or row.replace("\\|", "").count("|") != 4]
