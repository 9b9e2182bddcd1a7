"""The timeline takes whatever numbers a failing training has."""

from __future__ import annotations

import math

import numpy as np

from nanreplay.recorder.timeline_ring import RunningMean, StepNumbers, TimelineRing, TimelineRow


def test_a_ratio_beyond_float32_is_infinite_and_no_warning() -> None:
    """A weight of 1e-20 that becomes 1e30 changes by a ratio of 1e50; warnings are errors here, as
    they may be in a training."""
    ring = TimelineRing(10)
    ring.add(TimelineRow(0, 0.1, loss=1.0, sums={3: 2.0}))
    table = ring.table([3], {0: StepNumbers(update_ratios={3: 1e50})})
    assert np.isinf(table.matrices["update_ratio"][0, 0])
    assert table.matrices["weight_norm"][0, 0] == 2.0


def test_what_a_step_did_not_measure_is_nan_in_the_file_and_the_last_known_value_for_who_asks() -> (
    None
):
    ring = TimelineRing(10)
    for step, half_square in enumerate([None, 2.0, None, None, 8.0]):
        ring.add(
            TimelineRow(
                step, 0.1, loss=-1.0, sums=None if half_square is None else {0: half_square}
            )
        )
    table = ring.table(
        [0], {3: StepNumbers(losses=[5.0], weight_norms={0: 3.0}, gradient_norms={0: 1.0})}
    )
    assert table.columns["loss"].tolist() == [-1.0, -1.0, -1.0, 5.0, -1.0]
    assert table.columns["measured"].tolist() == [False, True, False, False, True]
    np.testing.assert_array_equal(table.matrices["weight_norm"][:, 0], [np.nan, 2, np.nan, 3, 4])
    np.testing.assert_array_equal(
        table.matrices["gradient_norm"][:, 0], [np.nan, np.nan, np.nan, 1, np.nan]
    )
    assert table.matrix("weight_norm")[:, 0].tolist() == [2, 2, 2, 3, 4]
    assert table.matrix("no_such_matrix").shape == (0, 0)
    assert ring.table([0], {}, last=2).columns["step"].tolist() == [0, 1, 2]


def test_the_loss_of_a_step_is_what_it_added_to_a_mean() -> None:
    ring = TimelineRing(10)
    for step, (total, count) in enumerate(
        [(8.0, 4.0), (20.0, 8.0), (21.0, 9.0), (6.0, 2.0), (math.inf, 4.0), (math.inf, 6.0)]
    ):
        ring.add(TimelineRow(step, 0.1, mean=RunningMean(total, count)))
    losses = ring.table([]).columns["loss"]
    np.testing.assert_array_equal(losses, [2.0, 3.0, 1.0, 3.0, math.inf, math.inf])


def test_a_mean_after_steps_that_are_not_known_is_the_best_that_can_be_said() -> None:
    ring = TimelineRing(10)
    ring.add(TimelineRow(0, 0.1, mean=RunningMean(8.0, 4.0)))
    ring.add(TimelineRow(1, 0.1))
    ring.add(TimelineRow(2, 0.1, mean=RunningMean(20.0, 8.0)))
    np.testing.assert_array_equal(ring.table([]).columns["loss"], [2.0, np.nan, 2.5])


def test_a_learning_rate_that_is_read_now_and_then_holds_between() -> None:
    ring = TimelineRing(10)
    for step, rate in enumerate([math.nan, 0.1, math.nan, 0.2]):
        ring.add(TimelineRow(step, 0.1, learning_rate=rate))
    assert ring.table([]).columns["learning_rate"].tolist() == [0.1, 0.1, 0.1, 0.2]
