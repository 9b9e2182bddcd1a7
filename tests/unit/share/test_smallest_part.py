"""Delta debugging finds what is needed, whatever that is, and never claims less."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from nanreplay.export.trials import TrialBudgetSpentError, smallest_part

UNITS = tuple(range(40))
PARTS = st.sets(st.sampled_from(UNITS), max_size=8)


@given(PARTS)
def test_what_is_needed_together_is_found_exactly(needed: set[int]) -> None:
    assert smallest_part(UNITS, lambda kept: needed <= set(kept)) == tuple(sorted(needed))


@given(st.lists(PARTS.filter(bool), min_size=1, max_size=4))
def test_of_several_reasons_one_is_kept_and_nothing_of_it_can_be_left_out(
    reasons: list[set[int]],
) -> None:
    def happens(kept: Sequence[int]) -> bool:
        return any(reason <= set(kept) for reason in reasons)

    kept = smallest_part(UNITS, happens)
    assert happens(kept)
    assert not any(happens([unit for unit in kept if unit != left_out]) for left_out in kept)


@given(PARTS, st.integers(0, 30))
def test_a_spent_budget_leaves_more_but_never_too_little(needed: set[int], budget: int) -> None:
    left = budget

    def happens(kept: Sequence[int]) -> bool:
        nonlocal left
        if not left:
            raise TrialBudgetSpentError
        left -= 1
        return needed <= set(kept)

    assert needed <= set(smallest_part(UNITS, happens))


def test_units_keep_their_order() -> None:
    assert smallest_part("abcdefgh", lambda kept: {"g", "b"} <= set(kept)) == ("b", "g")


def test_nothing_is_tried_of_nothing() -> None:
    assert smallest_part((), lambda kept: False) == ()
