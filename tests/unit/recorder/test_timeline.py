"""The timeline takes whatever numbers a failing training has."""

from __future__ import annotations

import numpy as np

from nanreplay.recorder.timeline import TimelineRing, TimelineRow


def test_a_ratio_beyond_float32_is_infinite_and_no_warning() -> None:
    """A weight of 1e-20 that becomes 1e30 changes by a ratio of 1e50; warnings are errors here, as they may be in a training."""
    ring = TimelineRing(10)
    ring.add(TimelineRow(0, ("loss:0", "variable_sum:3"), np.array([1.0, 2.0], np.float32), 0.1, False))
    table = ring.table([3], {0: {3: 1e50}})
    assert np.isinf(table.matrices["update_ratio"][0, 0])
    assert table.matrices["weight_norm"][0, 0] == 2.0
