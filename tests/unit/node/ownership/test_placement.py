"""The table of who should own what: the same for everybody, fair, and no more in motion than it must be."""

from __future__ import annotations

from collections import Counter
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atomic_actors.node.ownership._placement import Candidate, eligible, place

KINDS = frozenset({"account"})
IDS = st.text("0123456789abcdef", min_size=16, max_size=16)


def nodes(count: int, weight: float = 1.0) -> list[Candidate]:
    return [Candidate(f"{number:016x}", weight, KINDS) for number in range(count)]


candidates = st.lists(
    st.builds(Candidate, IDS, st.floats(0.25, 8), st.just(KINDS)),
    min_size=1,
    max_size=8,
    unique_by=lambda candidate: candidate.node_id,
)


@given(candidates, st.integers(1, 128), st.randoms(use_true_random=False))
def test_everybody_computes_the_same(found: list[Candidate], partitions: int, random: object) -> None:
    table = place(found, partitions)
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert place(shuffled, partitions) == table
    assert len(table) == partitions
    assert set(table) <= {candidate.node_id for candidate in found}


@given(candidates, st.integers(1, 128))
def test_everybody_has_its_share_to_within_one(found: list[Candidate], partitions: int) -> None:
    counts = Counter(place(found, partitions))
    total = sum(candidate.weight for candidate in found)
    for candidate in found:
        share = partitions * candidate.weight / total
        assert floor(share - 1e-9) <= counts[candidate.node_id] <= ceil(share + 1e-9)


@pytest.mark.parametrize("count", [2, 3, 5, 8, 13])
def test_the_load_is_balanced_within_a_tenth(count: int) -> None:
    counts = Counter(place(nodes(count), 1024))
    average = 1024 / count
    assert all(0.9 * average <= counts[node.node_id] <= 1.1 * average for node in nodes(count))


@given(candidates, IDS, st.integers(16, 256))
def test_who_joins_moves_its_share_and_little_else(
    found: list[Candidate], node_id: str, partitions: int
) -> None:
    others = [candidate for candidate in found if candidate.node_id != node_id]
    if not others:
        return
    before = place(others, partitions)
    after = place([*others, Candidate(node_id, 1.0, KINDS)], partitions)
    moved = sum(old != new for old, new in zip(before, after, strict=True))
    assert moved <= 2 * after.count(node_id) + len(others)


@given(candidates, st.integers(16, 256))
def test_who_leaves_comes_back_to_the_same(found: list[Candidate], partitions: int) -> None:
    before = place(found, partitions)
    gone, *others = found
    assert gone.node_id not in place(others, partitions)
    assert place([*others, gone], partitions) == before


def test_a_join_moves_close_to_the_least_there_can_be() -> None:
    for count in (2, 4, 8):
        before, after = place(nodes(count), 1024), place(nodes(count + 1), 1024)
        moved = sum(old != new for old, new in zip(before, after, strict=True))
        least = 1024 // (count + 1)
        assert least <= moved <= 1.4 * least


def test_nobody_owns_anything_where_nobody_is() -> None:
    assert place([], 3) == ("", "", "")
    assert place([Candidate("a")], 3) == ("", "", "")


def test_those_that_offer_every_kind_come_first() -> None:
    old, new = Candidate("old", 1.0, frozenset({"a"})), Candidate("new", 1.0, frozenset({"a", "b"}))
    assert eligible([old, new, Candidate("sender")]) == (new,)
    assert set(place([old, new], 8)) == {"new"}
    # Where nobody has them all, everybody takes part.
    other = Candidate("other", 1.0, frozenset({"c"}))
    assert eligible([old, new, other]) == (new, old, other)
