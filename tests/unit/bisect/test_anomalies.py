"""How a series leaves its usual range for good; noise, spikes and shifts that are none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nanreplay.bisect.anomalies import departure, falling_scale, rate_steps

Values = NDArray[np.float64]


def noise(n: int, width: float = 0.2, usual: float = 0.3) -> Values:
    return usual * np.random.default_rng(n).lognormal(0, width, n)


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed >= 20)) for seed in range(60)]
)
def test_healthy_noise_leaves_no_range(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(5, 3000))
    kinds = [
        random.lognormal(0, 0.5, n),
        2 * np.exp(-3 * np.arange(n) / n) * random.lognormal(0, 0.4, n),
        np.abs(random.standard_t(2, n)),
        np.cumsum(random.normal(0, 0.05, n)) + 5,
        1 + 0.5 * np.sin(np.arange(n) / 20) + random.normal(0, 0.1, n),
        -random.lognormal(0, 0.3, n),
    ]
    assert departure(kinds[seed % len(kinds)]) is None


@pytest.mark.parametrize(
    ("values", "start", "count"),
    [
        (np.r_[noise(500), 0.3 * 3.0 ** np.arange(2, 30)], 500, 28),
        (np.r_[noise(100), 1e5], 100, 1),
        (np.r_[noise(100), 1e5, noise(100)], None, 0),
        (np.array([0.69, 0.5, 0.4, 3.2, 1e5]), 3, 2),
        (np.array([2.5, 209.0, 5.9e7, 1.1e25]), 1, 3),
        (np.r_[-100 + noise(200), -50, 10, 500, 1e6], 200, 4),
        (np.r_[np.full(100, 1e-7), 1e-5, 1e-3, 1, 50], 100, 4),
    ],
)
def test_where_growth_begins(values: Values, start: int | None, count: int) -> None:
    found = departure(values)
    assert (None if found is None else found.start) == start
    if found is not None:
        assert found.count == count
        assert found.rises


def test_slow_growth_is_seen_from_far() -> None:
    slow = 0.3 * 1.01 ** np.arange(1500) * np.random.default_rng(0).lognormal(0, 0.2, 1500)
    found = departure(np.r_[noise(2000), slow])
    assert found is not None
    assert 2000 < found.start < 2300
    assert found.rises


def test_a_level_that_is_kept_does_not_rise() -> None:
    found = departure(np.r_[noise(300, 0.05), noise(301, 0.05, 1.5)])
    assert found is not None
    assert not found.rises


@pytest.mark.parametrize(
    ("scales", "start"),
    [
        (np.r_[np.full(50, 65536.0), 65536.0 / 2 ** np.arange(1, 20)], 50),
        (np.r_[np.full(50, 65536.0), np.full(50, 32768.0), np.full(50, 65536.0)], None),
        (np.repeat(65536.0 / 2 ** np.arange(8), 100), None),  # single overflows, far apart
        (np.array([65536.0]), None),
    ],
)
def test_a_loss_scale_that_does_its_work_does_not_fall(scales: Values, start: int | None) -> None:
    assert falling_scale(scales) == start


def test_steps_of_a_learning_rate() -> None:
    assert rate_steps(np.array([0.1, 0.1, 1.0, 1.0])) == [(2, False)]
    assert rate_steps(np.array([1.0, 0.1, 0.1])) == []
    assert all(warms_up for _, warms_up in rate_steps(np.linspace(0.1, 1.0, 10)))
