"""Series, layers by step, bars: what front ends show of a timeline."""

from __future__ import annotations

import numpy as np
import pytest

from nanreplay.records import Incident, Timeline, Trigger, VariableInfo
from nanreplay.report.history import History, LayerTable, Series, bar_lines, layer_of, thinned

NAN, INF = float("nan"), float("inf")
VARIABLES = [
    VariableInfo(path, (2,), "float32", "trainable")
    for path in ("net/dense/kernel", "net/dense/bias", "net/out/kernel")
]


def history(**columns: list[float]) -> History:
    steps = np.arange(100, 104)
    gradient = np.array([[3.0, 4.0, 0.0], [3e200, 4e200, 1.0], [1.0, 1.0, 2.0], [NAN, 1.0, INF]])
    ratio = np.array([[0.1, NAN, NAN], [0.2, 0.3, NAN], [0.1, 0.1, NAN], [INF, 0.1, NAN]])
    timeline = Timeline(
        {
            "step": steps,
            "loss": np.array([4.0, 3.0, 2.0, NAN]),
            "loss_scale": np.full(4, NAN),
            **{k: np.array(v) for k, v in columns.items()},
        },
        {"gradient_norm": gradient, "update_ratio": ratio, "weight_norm": np.full((4, 3), NAN)},
        (0, 1, 2),
    )
    return History(timeline, Incident(103, Trigger("loss", "loss", "nan")), VARIABLES, (102, 103))


def test_only_what_was_recorded_is_a_series() -> None:
    assert [series.name for series in history().series] == ["loss", "gradient norm"]
    assert [series.name for series in history(learning_rate=[0.1] * 4).series] == [
        "loss",
        "gradient norm",
        "learning rate",
    ]


def test_the_norm_over_all_variables_does_not_overflow_by_itself() -> None:
    norms = history().series[1].values
    assert norms[0] == 5.0
    assert norms[1] == pytest.approx(5e200)
    assert np.isnan(norms[3])


def test_layers_join_their_variables() -> None:
    table = history().table("gradient_norm")
    assert table.layers == ("net/dense", "net/out")
    assert table.values[:, 0].tolist() == [5.0, 0.0]
    assert history().table("update_ratio").values[0].tolist() == [0.1, 0.3, 0.1, INF]


def test_levels_are_magnitudes_within_a_layer_and_nan_where_it_is_not_finite() -> None:
    levels = history().table("gradient_norm").levels
    assert levels[0, 1] == 1.0
    assert levels[0, 2] == 0.0
    assert levels[1, 0] == 0.0
    assert np.isnan(levels[:, 3]).all()


def test_every_finite_value_has_a_level_whatever_the_file_holds() -> None:
    values = np.array([[-1.0, 0.0, 5e-324, 1e308], [0.0, 0.0, 0.0, 0.0]])
    levels = LayerTable("gradient_norm", ("a", "b"), values).levels
    assert np.isfinite(levels).all()
    assert ((levels >= 0) & (levels <= 1)).all()


def test_a_measure_that_is_nan_throughout_was_not_recorded() -> None:
    assert history().measures == ("gradient_norm", "update_ratio")


@pytest.mark.parametrize(("step", "place"), [(100, 0), (103, 3), (7, 0), (999, 3)])
def test_positions_of_steps_that_are_not_held_are_those_of_the_nearest(
    step: int, place: int
) -> None:
    assert history().position(step) == place


def test_an_empty_timeline_has_nothing_to_show() -> None:
    empty = History(Timeline({}, {}, ()), Incident(0, Trigger("loss", "loss", "nan")), (), ())
    assert (empty.series, empty.measures, empty.position(3)) == ((), (), 0)
    assert empty.table("gradient_norm").layers == ()


def test_steep_series_are_drawn_by_magnitude() -> None:
    assert Series("loss", np.array([1.0, 1e4, NAN])).is_steep
    assert not Series("loss", np.array([-1.0, 1e4])).is_steep
    assert not Series("loss", np.array([NAN])).is_steep


def test_bars_mark_what_is_not_finite() -> None:
    assert bar_lines([1.0, 2.0, 3.0, NAN], 10) == ["▁▄█✗"] or bar_lines(
        [1.0, 2.0, 3.0, NAN], 10
    ) == ["▁▅█✗"]
    assert bar_lines([1.0, 3.0, INF], 10, 2) == [" █ ", "▁█✗"]
    assert bar_lines([], 10) == [""]
    assert bar_lines([5.0], 10) == ["▁"]


def test_bars_of_many_steps_keep_the_width_and_the_mark() -> None:
    (line,) = bar_lines([*np.linspace(1, 2, 999), NAN], 40)
    assert len(line) == 40
    assert line.endswith("✗")


def test_thinning_keeps_the_ends_of_each_share() -> None:
    steps, values = np.arange(1000), np.zeros(1000)
    values[500], values[700] = 9.0, NAN
    x, y = thinned(steps, values, 100)
    assert len(x) <= 100
    assert 9.0 in y
    assert x == sorted(x)


def test_a_variable_outside_of_layers_is_its_own_layer() -> None:
    assert [layer_of(path) for path in ("net/dense/kernel", "scale")] == ["net/dense", "scale"]
