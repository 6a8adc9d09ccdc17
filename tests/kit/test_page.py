"""The page about the kit: its examples are one file of tests, and they pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks_of

pytest_plugins = ["pytester"]

PAGE = ROOT / "docs" / "testing.md"


def test_the_examples_pass(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    text = "\n".join(block.text for block in blocks_of(PAGE, "py"))
    Path(pytester.path / "test_bank.py").write_text(text, encoding="utf-8")
    options = ("-p", "atomic_actors_pytest", "-p", "anyio", "-p", "no:cacheprovider", "-W", "error")
    result = pytester.runpytest_subprocess(*options, "--durations=10", timeout=55)
    # Six coroutines on two event loops, and six plain tests.
    result.assert_outcomes(passed=18)
