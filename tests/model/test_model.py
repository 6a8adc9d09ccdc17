"""Every state of the configurations is visited, and in each of them everything holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.model.configurations import CONFIGURATIONS, Configuration
from tests.model.protocol import Protocol, render
from tests.model.search import search

STATES_MAX = 1_000_000
PAGE = Path(__file__).parents[2] / "docs" / "model.md"


def counts_on_the_page() -> dict[str, int]:
    """What `docs/model.md` says: states by configuration."""
    rows = re.findall(r"^\| ([^|]+?) \| ([\d,]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in rows}


def test_there_are_enough_states() -> None:
    counts = counts_on_the_page()
    assert set(counts) == {configuration.name for configuration in CONFIGURATIONS}
    assert sum(counts.values()) >= 1_000_000


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda configuration: configuration.name)
def test_nothing_is_wrong_in_any_state(configuration: Configuration) -> None:
    report = search(Protocol(configuration), states_max=STATES_MAX)
    if report.found is not None:
        pytest.fail("\n".join((report.found.what, *render(report.found.trace))))
    assert report.complete
    assert report.at_rest > 0
    # The page is wrong, or the model is another one: look which.
    assert report.states == counts_on_the_page()[configuration.name]
