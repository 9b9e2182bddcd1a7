"""Pictures out of characters."""

from __future__ import annotations

import numpy as np

from nanreplay.explore import Histogram
from nanreplay.report.fix_patch import DiffLine
from nanreplay.tui.widgets.code_lines import diff_content
from nanreplay.tui.widgets.figures import (
    histogram_text,
    histogram_words,
    image_text,
    map_text,
    sample_bars,
)
from nanreplay.tui.widgets.plots import braille_curve

COLOURS = dict.fromkeys(("text-primary", "text-muted", "text-disabled", "text-error"), "#ffffff")


def test_the_highest_bar_of_a_histogram_fills_it() -> None:
    lines = histogram_text(
        Histogram("linear", (0.0, 1.0, 2.0), (8, 4), 0, 0), COLOURS, 2, 2
    ).plain.split("\n")
    assert lines == ["█ ", "██", "0.0 2.0"]


def test_a_single_element_can_be_seen_beside_many() -> None:
    lines = histogram_text(
        Histogram("log", (-3.0, 0.0, 3.0), (1, 100_000), 2, 1), COLOURS, 4, 1
    ).plain.split("\n")
    assert lines == ["▁▁██", "1e-3 1e3"]


def test_words_of_a_histogram() -> None:
    assert (
        histogram_words(Histogram("log", (-3.0, 3.0), (1,), 2, 1))
        == "|x| in powers of ten, 2 of them 0, 1 below 0"
    )


def test_a_map_marks_patches_with_anything_bad() -> None:
    assert map_text(np.array([[0.0, 0.001], [0.5, 1.0]]), COLOURS, 10, 10).plain == "·░\n▓█"


def test_an_image_takes_two_pixels_in_a_cell() -> None:
    image = np.array([[0.0, 1.0], [1.0, np.nan]])
    assert image_text(image, COLOURS, 2, low=0, high=1, plain=False).plain == "▀✗"


def test_without_colours_brightness_is_told_by_characters() -> None:
    assert (
        image_text(
            np.array([[[0], [128], [255]]], np.uint8), COLOURS, 3, low=0, high=255, plain=True
        ).plain
        == " +@"
    )


def test_bars_of_samples_grow_with_their_distance() -> None:
    assert sample_bars(np.array([0.0, 1.0, 4.0, 300.0, np.inf])) == "▁▃▅█✗"


def test_a_curve_has_a_gap_where_a_value_is_not_finite() -> None:
    assert braille_curve(np.array([0.0, 0.0, np.nan, np.inf]), 4, 1)[0][2:] == "  "


def test_a_curve_goes_from_the_lowest_to_the_highest_value() -> None:
    rising = braille_curve(np.array([0.0, 1.0]), 2, 2)
    assert rising[0][0] == " "
    assert rising[1][0] != " "
    assert rising[0][1] != " "


def test_a_jump_of_one_step_among_thousands_is_seen() -> None:
    losses = np.ones(5000)
    losses[1234] = 50.0
    top, *_ = braille_curve(losses, 40, 3)
    assert top.strip() != ""


def test_a_long_change_goes_on_further_in_and_what_differs_stands_out() -> None:
    change = (DiffLine("-", "return total / count"), DiffLine("+", "return total / (count + 1e-7)"))
    content = diff_content(change, width=26)
    assert content.plain.split("\n") == [
        "- return total / count",
        "+ return total / (count",
        "    + 1e-7)",
    ]
    marked = [content.plain[a:b] for a, b, style in content.spans if "underline" in str(style)]
    assert marked[0] == "count"
