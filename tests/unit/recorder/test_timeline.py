"""The timeline takes whatever numbers a failing training has."""

from __future__ import annotations

import numpy as np

from nanreplay.program.fingerprint import NOT_MEASURED
from nanreplay.recorder.timeline import TimelineRing, TimelineRow


def test_a_ratio_beyond_float32_is_infinite_and_no_warning() -> None:
    """A weight of 1e-20 that becomes 1e30 changes by a ratio of 1e50; warnings are errors here, as they may be in a training."""
    ring = TimelineRing(10)
    ring.add(TimelineRow(0, ("loss:0", "variable_sum:3"), np.array([1.0, 2.0], np.float32), 0.1, False))
    table = ring.table([3], {0: {3: 1e50}})
    assert np.isinf(table.matrices["update_ratio"][0, 0])
    assert table.matrices["weight_norm"][0, 0] == 2.0


def test_what_a_step_did_not_measure_is_nan_in_the_file_and_the_last_known_value_for_who_asks() -> None:
    ring, layout = TimelineRing(10), ("loss:0", "gradient_sum:0", "gradient_max:0", "variable_sum:0")
    for step, (largest, half_square) in enumerate([(NOT_MEASURED,) * 2, (7.0, 2.0), (NOT_MEASURED,) * 2, (NOT_MEASURED,) * 2, (9.0, 8.0)]):
        ring.add(TimelineRow(step, layout, np.array([-1.0, 0.5, largest, half_square], np.float32), 0.1, False))
    table = ring.table([0], {}, {3: {0: 3.0}})
    assert table.columns["loss"].tolist() == [-1.0] * 5
    assert table.columns["measured"].tolist() == [False, True, False, False, True]
    np.testing.assert_array_equal(table.matrices["gradient_absmax"][:, 0], [np.nan, 7, np.nan, np.nan, 9])
    np.testing.assert_array_equal(table.matrices["weight_norm"][:, 0], [np.nan, 2, np.nan, 3, 4])
    assert table.matrices["gradient_norm"][:, 0].tolist() == [1] * 5
    assert table.matrix("weight_norm")[:, 0].tolist() == [2, 2, 2, 3, 4]
    assert table.matrix("gradient_absmax")[:, 0].tolist() == [7, 7, 7, 7, 9]
    assert table.matrix("no_such_matrix").shape == (0, 0)
    assert ring.table([0], {}, last=2).columns["step"].tolist() == [0, 1, 2]
