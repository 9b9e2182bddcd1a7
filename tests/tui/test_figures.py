"""Pictures out of characters."""

from __future__ import annotations

import numpy as np

from nanreplay.explore import Histogram
from nanreplay.tui.widgets.figures import (
    histogram_text,
    histogram_words,
    image_text,
    map_text,
    sample_bars,
)

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
