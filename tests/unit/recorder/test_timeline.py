"""The timeline takes whatever numbers a failing training has."""

from __future__ import annotations

import math

import numpy as np

from nanreplay.recorder import timeline_ring
from nanreplay.recorder.timeline_ring import (
    MeasuredNorms,
    RunningMean,
    StepNumbers,
    TimelineRing,
    TimelineRow,
    norms_of,
)


def measured(half_squares: dict[int, float]) -> MeasuredNorms:
    return MeasuredNorms(list(half_squares), norms_of(list(half_squares.values())))


def test_a_ratio_beyond_float32_is_infinite_and_no_warning() -> None:
    """A weight of 1e-20 that becomes 1e30 changes by a ratio of 1e50; warnings are errors here, as
    they may be in a training."""
    ring = TimelineRing(10)
    ring.add(TimelineRow(0, 0.1, loss=1.0, measured=measured({3: 2.0})))
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
                step,
                0.1,
                loss=-1.0,
                measured=None if half_square is None else measured({0: half_square}),
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


def test_matrices_are_what_putting_in_one_number_after_the_other_gives() -> None:
    """Variables come in the middle of a training, and not every step measures."""
    random, ring, expected = np.random.default_rng(0), TimelineRing(100), np.full((60, 3), np.nan)
    column_of = {0: 0, 2: 1, 5: 2}
    for step in range(60):
        variables = [5, 0, 1] if step < 20 else [5, 0, 1, 2]
        half_squares = dict(zip(variables, random.random(len(variables)), strict=True))
        is_measured = step % 3 != 1
        ring.add(TimelineRow(step, 0.1, measured=measured(half_squares) if is_measured else None))
        for variable, half_square in half_squares.items() if is_measured else ():
            if variable in column_of:
                expected[step, column_of[variable]] = np.sqrt(2.0 * half_square)
    table = ring.table(list(column_of))
    np.testing.assert_array_equal(table.matrices["weight_norm"], expected.astype(np.float32))
    assert np.isnan(table.matrices["gradient_norm"]).all()


def long_ring(history: int, steps: int, diverges_at: int) -> TimelineRing:
    """A loss around 1 that grows by a millionth a step from `diverges_at` on, and a spike."""
    random, ring = np.random.default_rng(0), TimelineRing(history)
    for step in range(steps):
        loss = 1.0 + 0.1 * random.random() + max(0, step - diverges_at) * 1e-2
        weights = measured({0: loss, 1: 1.0}) if step % 16 == 0 else None
        loss = 1e6 if step == steps // 3 else loss
        ring.add(TimelineRow(step, 0.1, loss=loss, learning_rate=0.5, measured=weights))
    return ring


def test_a_long_training_is_thinned_and_not_cut() -> None:
    history, steps, diverges_at = 500, 60_000, 40_000
    ring = long_ring(history, steps, diverges_at)
    table = ring.table([0, 1])
    shown = table.columns["step"]
    assert len(shown) <= history + timeline_ring.OLDER
    assert shown[-history:].tolist() == list(range(steps - history, steps)), "all of the last"
    assert (np.diff(shown) > 0).all()
    assert shown[0] < 1000
    assert np.diff(shown).max() < 1000, "no part of the training is without a step"
    assert table.columns["loss"].max() == 1e6, "a spike of a single step stays"
    assert np.isfinite(table.matrices["weight_norm"][:-history, 0]).sum() > 100
    late = table.columns["loss"][shown > steps - history]
    assert late.min() > 100 * table.columns["loss"][shown < diverges_at].min()


def test_a_thinned_history_takes_no_more_memory_however_long_it_runs() -> None:
    short, long = (long_ring(200, steps, steps) for steps in (20_000, 80_000))
    bound = 200 + timeline_ring.OLDER + timeline_ring.HANDED_ON + 32
    assert len(short) <= bound
    assert len(long) <= bound


def test_a_bound_on_memory_shortens_the_history_and_says_so() -> None:
    ring = TimelineRing(1000)
    assert ring.bound(10, 2**20) is None
    said = ring.bound(10_000, 2**20)
    assert said is not None
    assert "instead of 1000 steps" in said
    assert ring.size_bytes <= 2**20
    for step in range(300):
        ring.add(TimelineRow(step, 0.1, loss=1.0))
    assert ring.table([]).columns["step"][-1] == 299
