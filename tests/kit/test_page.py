"""The page about the kit: its examples are one file of tests, and they pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks_of

pytest_plugins = ["pytester"]

PAGE = ROOT / "docs" / "testing-kit-draft.md"

#: The names as the page imports them.
CONFTEST = """
import atomic_actors.testing as testing
from atomic_actors.testing import _contract_strategies, _new_systems, _strategies

for module in (_contract_strategies, _new_systems, _strategies):
    for name in module.__all__:
        setattr(testing, name, getattr(module, name))
"""


def test_the_examples_pass(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    text = "\n".join(block.text for block in blocks_of(PAGE, "py"))
    Path(pytester.path / "test_bank.py").write_text(text, encoding="utf-8")
    pytester.makeconftest(CONFTEST)
    options = ("-p", "atomic_actors_pytest", "-p", "anyio", "-p", "no:cacheprovider", "-W", "error")
    result = pytester.runpytest_subprocess(*options, "--durations=10", timeout=55)
    # Six coroutines on two event loops, and one plain test.
    result.assert_outcomes(passed=13)
