"""The looks at arrays that every step takes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nanreplay.program.nonfinite_values import squares_fit


@pytest.mark.parametrize(
    ("number", "fits"), [(1.0, True), (1e30, False), (np.inf, False), (np.nan, False)]
)
def test_squares_that_overflow_are_an_answer_and_no_warning(number: float, fits: bool) -> None:
    assert squares_fit(tf.fill([70], np.float32(number))) is fits
