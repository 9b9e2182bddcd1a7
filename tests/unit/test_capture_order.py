"""Which captures the list of `nanreplay open` shows, and in which order."""

from __future__ import annotations

import pytest

from nanreplay.tui.capture_order import CaptureOrder, ListedCapture

COLUMNS = ("cause", "step")
CAPTURES = [
    ListedCapture("a.h5", {"cause": "log of zero", "step": "12"}, "step 12: Log of 0.0", "log"),
    ListedCapture("b.h5", {"cause": "Exploding gradient", "step": "9"}, "step 9", "grew"),
    ListedCapture("c.h5", {"cause": "", "step": "100"}, "cannot be read"),
    ListedCapture("d.h5", {"cause": "Exploding gradient", "step": "101"}, "step 101", "grew"),
]


def names(order: CaptureOrder) -> str:
    return "".join(each.name[0] for each in order.arranged(CAPTURES))


@pytest.mark.parametrize(
    ("order", "shown"),
    [
        (CaptureOrder(), "abcd"),
        (CaptureOrder(column="cause"), "bdac"),
        (CaptureOrder(column="step"), "bacd"),
        (CaptureOrder(together=True), "bdac"),
        (CaptureOrder(column="step", together=True), "bdac"),
        (CaptureOrder(words="LOG 12"), "a"),
        (CaptureOrder(words="read"), "c"),
        (CaptureOrder(words="exploding log"), ""),
        (CaptureOrder(column="cause", words="step"), "bda"),
    ],
)
def test_captures_are_sorted_grouped_and_filtered(order: CaptureOrder, shown: str) -> None:
    assert names(order) == shown


def test_columns_take_turns() -> None:
    order, columns = CaptureOrder(), []
    for _ in range(3):
        order = order.sorted_by_next(COLUMNS)
        columns.append(order.column)
    assert columns == ["cause", "step", ""]


def test_the_line_above_says_what_is_shown() -> None:
    order = CaptureOrder("cause", together=True, words="step")
    said = "3 of 4 captures · with 'step' · sorted by cause · 2 different failures"
    assert order.described(3, CAPTURES) == said
    assert CaptureOrder().described(4, CAPTURES) == "4 captures"
