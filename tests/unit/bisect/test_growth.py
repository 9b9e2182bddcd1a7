"""Where values began to grow."""

from __future__ import annotations

from typing import Any

import numpy as np

from nanreplay.bisect.growth import find_root
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


def test_no_timeline_gives_the_step_itself() -> None:
    assert find_root(None, 7).step == 7
    assert find_root(timeline([]), 7).step == 7
