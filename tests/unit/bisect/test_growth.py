"""Where values began to grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nanreplay.bisect.growth import find_growth, find_root
from nanreplay.records import Timeline


def timeline(loss: Any, norms: Any = None) -> Timeline:
    steps = np.arange(100, 100 + len(loss))
    matrices = {} if norms is None else {"gradient_norm": np.asarray(norms, float)[:, None]}
    return Timeline({"step": steps, "loss": np.asarray(loss, float)}, matrices, (0,))


def test_a_divergence_begins_where_the_loss_began_to_grow_for_good() -> None:
    calm = 1.0 + 0.1 * np.random.RandomState(0).rand(30)
    root = find_root(timeline([*calm, *(2.0 ** np.arange(1, 20))]), 148)
    assert 129 <= root.step <= 131
    assert "the loss grew without return" in root.reason


def test_one_spike_that_comes_back_is_no_root() -> None:
    loss = np.ones(50)
    loss[20] = 1e6
    assert find_root(timeline(loss), 149).step == 149


def test_a_jump_at_the_origin_itself_is_no_divergence() -> None:
    assert find_root(timeline([*np.ones(30), 1e9]), 130).step == 130


def test_weights_that_leave_zero_and_settle_are_no_divergence() -> None:
    assert find_root(timeline(np.ones(50), [1e-6, 1e-5, *np.ones(48)]), 149).step == 149


def test_gradients_that_overflow_before_the_loss_are_seen() -> None:
    root = find_root(timeline(np.full(20, np.nan), 3.0 ** np.arange(20)), 119)
    assert root.step == 100
    assert "gradient norm" in root.reason


@pytest.mark.parametrize("before", [(1.2,), (1.0, 1.1, 0.9, 1.0, 1.2)])
def test_a_last_value_far_above_the_usual_one_is_not_said_to_be_no_growth(
    before: tuple[float, ...],
) -> None:
    origin = 101 + len(before)
    root = find_root(timeline([*before, 32.5, np.inf]), origin)
    assert root.step == origin  # one value is no growth without return
    assert root.reason.startswith(f"At step {origin - 1} the loss was 32.5, ")
    calm = find_root(timeline([*before, 1.3, np.inf]), origin)
    assert calm.reason == "Loss, gradients and weights did not grow in the steps before it."


def test_no_timeline_gives_the_step_itself() -> None:
    assert find_root(None, 7).step == 7
    assert find_root(timeline([]), 7).step == 7
    assert find_root(timeline([1.0, np.nan]), 101).reason.startswith("Too few steps")


PATHS = ("first/kernel", "second/kernel")


def norms(*columns: Any, rate: float | None = None) -> Timeline:
    """Gradient norms, one column a variable."""
    steps = np.arange(len(columns[0]))
    rates = {} if rate is None else {"learning_rate": np.full(len(steps), rate)}
    return Timeline(
        {"step": steps, **rates},
        {"gradient_norm": np.stack(columns, axis=1)},
        tuple(range(len(columns))),
    )


def test_the_variable_that_left_its_usual_range_first_led() -> None:
    quiet = np.ones(5)
    first, second = (
        np.concatenate([quiet, quiet, 5.0 ** np.arange(1, 11)]),
        np.concatenate([quiet, 5.0 ** np.arange(1, 16)]),
    )
    growth = find_growth(norms(first, second, rate=0.5), 20, PATHS)
    assert growth is not None
    assert (growth.step, growth.variable, growth.is_jump) == (4, "second/kernel", False)
    assert growth.sentence == (
        "From step 4 on the gradient norm of `second/kernel` grew without return, from 1 to "
        "3.05e+10 at step 19 "
        "(3.1e+10 times in 15 steps), learning rate 0.5."
    )


def test_of_two_that_left_it_together_the_one_that_grew_most_led() -> None:
    growth = find_growth(norms(3.0 ** np.arange(20), 5.0 ** np.arange(20)), 20, PATHS)
    assert growth is not None
    assert growth.variable == "second/kernel"


def test_a_jump_just_before_the_origin_is_told_as_one() -> None:
    growth = find_growth(norms([*np.ones(10), 1e6]), 11, PATHS)
    assert growth is not None
    assert (growth.step, growth.is_jump, growth.steps) == (10, True, 1)
    assert find_root(norms([*np.ones(10), 1e6]), 11, PATHS).reason.startswith(
        "At step 10 the gradient norm of `first/kernel` jumped"
    )


def test_noise_of_a_healthy_run_is_no_growth() -> None:
    for seed in range(50):
        draws = np.random.RandomState(seed)
        steps = norms(np.exp(draws.randn(200)), 1e-3 * np.exp(1.5 * draws.randn(200)))
        assert find_growth(steps, 200, PATHS) is None


def test_a_divergence_of_long_ago_is_seen_in_a_history_that_was_thinned() -> None:
    """The last steps are all high; most of the training, of which little is kept, was not."""
    older = np.arange(0, 1_000_000, 1000)
    steps = np.concatenate([older, np.arange(1_000_000, 1_010_000)])
    noise = 1.0 + 0.1 * np.random.RandomState(0).rand(len(steps))
    loss = noise * 10.0 ** (np.maximum(steps - 900_000, 0) / 50_000)
    long = Timeline({"step": steps, "loss": loss}, {}, ())
    growth = find_growth(long, 1_009_999)
    assert growth is not None
    assert growth.step == pytest.approx(900_000, abs=80_000)
    assert "From about step" in growth.sentence
    healthy = Timeline({"step": steps, "loss": noise}, {}, ())
    assert find_growth(healthy, 1_009_999) is None


def test_weights_that_leave_zero_while_the_loss_falls_learn_and_do_not_diverge_yet() -> None:
    learning = np.linspace(0.001, 1.0, 20)
    loss = np.concatenate([4.0 * 0.7 ** np.arange(20), 0.01 * 4.0 ** np.arange(1, 31)])
    weights = np.concatenate([learning, 2.0 ** np.arange(1, 31)])
    steps = np.arange(len(loss))
    made = Timeline({"step": steps, "loss": loss}, {"weight_norm": weights[:, None]}, (0,))
    growth = find_growth(made, len(loss), PATHS)
    assert growth is not None
    assert 18 <= growth.step <= 21
    falling = Timeline({"step": steps, "loss": -weights}, {"weight_norm": weights[:, None]}, (0,))
    without_bound = find_growth(falling, len(loss), PATHS)
    assert without_bound is not None  # a loss that has no lower bound falls while all diverges
    assert without_bound.step < 18
