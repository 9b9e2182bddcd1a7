"""What counts as flipped bits, and what as a departure from the recording."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nanreplay.diagnose import faults
from nanreplay.diagnose.faults import KeyframeComparison, believable, find_departure, reason_of
from nanreplay.program.fingerprint import NOT_MEASURED
from nanreplay.records import VariableInfo
from nanreplay.replay.step_results import Difference, StepResult

KERNEL = VariableInfo("dense/kernel", (3, 4), "float32", "trainable")
RATE = VariableInfo("sgd/learning_rate", (), "float32", "optimizer")
MEAN = VariableInfo("mean/total", (2,), "float32", "metric")
BIAS = VariableInfo("dense/bias", (1,), "float32", "trainable")
HALF = VariableInfo("dense/half", (5,), "bfloat16", "trainable")
INFOS = (KERNEL, RATE, MEAN, BIAS, HALF)


def flips(variable: int, replayed: Any, held: Any) -> list[Any]:
    comparison = KeyframeComparison(INFOS)
    kept = comparison(7, {variable: replayed}, {variable: held})
    assert kept[variable] is held
    return comparison.flips


def flipped(values: Any, places: list[int], bit: int = 30) -> Any:
    copy = np.array(values)
    bits = copy.reshape(-1).view(f"u{copy.dtype.itemsize}")
    for place in places:
        bits[place] ^= bits.dtype.type(1 << bit)
    return copy


def test_one_flipped_bit_is_found_with_its_place() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
    (flip,) = flips(0, values, flipped(values, [9]))
    assert (flip.path, flip.index, flip.elements, flip.bits, flip.step) == (
        "dense/kernel",
        (2, 1),
        1,
        1,
        7,
    )
    replay: Any = SimpleNamespace(incident=SimpleNamespace(step=9))
    reason = reason_of(replay, None, [flip])
    assert reason == "A bit of `dense/kernel` [2, 1] flipped between steps 6 and 7."


@pytest.mark.parametrize(
    ("sum_before", "departure", "said"),
    [
        (2.0, 9, "at step 9."),
        (2.0, 7, "at step 7 and turns non-finite 2 steps later."),
        # what step 8 left in its variables was not recorded: step 9 is the first to tell
        (NOT_MEASURED, 9, "at step 8 or 9."),
        (NOT_MEASURED, 7, "at step 6 or 7 and turns non-finite at step 9."),
    ],
)
def test_a_departure_is_told_as_nearly_as_the_recording_tells_it(
    sum_before: float, departure: int, said: str
) -> None:
    signature = SimpleNamespace(watch_layout=("loss:0", "variable_sum:0"))
    batch = SimpleNamespace(fingerprint=np.array([1.0, sum_before], np.float32))
    replay: Any = SimpleNamespace(
        incident=SimpleNamespace(step=9),
        steps=range(10),
        signature=lambda step: signature,
        batch=lambda step: batch,
    )
    assert reason_of(replay, departure, []) == f"The recording departs from every replay {said}"


@pytest.mark.parametrize(
    ("bit", "is_same_machine", "bit_exact", "is_believed"),
    [
        (0, True, True, True),
        (0, False, True, False),  # a last bit is what another processor gives
        (30, False, True, True),
        (31, False, True, True),
        (30, True, False, False),  # the steps before it differ already
    ],
)
def test_a_last_bit_on_another_machine_is_no_flip(
    bit: int,
    is_same_machine: bool,
    bit_exact: bool,
    is_believed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faults, "is_same_machine", lambda replay: is_same_machine)
    values = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
    found = flips(0, values, flipped(values, [9], bit=bit))
    replay: Any = SimpleNamespace(capture=SimpleNamespace(state_steps=(), keyframe_steps=(0, 4, 7)))
    results: Any = [
        SimpleNamespace(step=step, bit_exact=step != 3 and (bit_exact or step != 5))
        for step in range(8)
    ]
    shown = KeyframeComparison(INFOS, list(found), {flip.step for flip in found})
    assert bool(believable(shown, replay, results)) == is_believed
    shown.differing.add(9)  # of this machine, something outside of the step sets weights
    assert bool(believable(shown, replay, results)) == (is_believed and not is_same_machine)


def test_half_precision_weights_flip_too() -> None:
    import ml_dtypes

    values = np.ones(5, ml_dtypes.bfloat16)
    (flip,) = flips(4, values, flipped(values, [2], bit=14))
    assert flip.index == (2,)


def test_equal_values_and_whole_variables_are_no_flips() -> None:
    values = np.ones((3, 4), np.float32)
    assert flips(0, values, values.copy()) == []
    assert flips(0, values, values * 2) == []
    assert flips(0, values, flipped(values, list(range(8)))) == []


def test_a_learning_rate_and_a_metric_are_set_by_others() -> None:
    assert flips(1, np.float32(1.0), np.float32(0.5)) == []
    assert flips(2, np.ones(2, np.float32), np.zeros(2, np.float32)) == []


def test_the_only_element_of_a_weight_must_differ_by_one_bit() -> None:
    one = np.ones(1, np.float32)
    assert len(flips(3, one, flipped(one, [0]))) == 1
    assert flips(3, one, np.full(1, 1.7, np.float32)) == []


def result(
    step: int, exact: bool | None = True, recorded: float = 1.0, replayed: float = 1.0
) -> StepResult:
    different = () if exact is not False else (Difference("loss", recorded, replayed, 5),)
    return StepResult(step, True, None, exact, 0, replayed, recorded, different)


def departure(
    results: list[StepResult], keyframes: tuple[int, ...] = (0,), *, here: bool = True
) -> int | None:
    metadata = {} if here else {"processor": "another"}
    replay: Any = SimpleNamespace(
        capture=SimpleNamespace(state_steps=(), keyframe_steps=keyframes, metadata=metadata)
    )
    return find_departure(replay, results)


NAN = float("nan")


@pytest.mark.parametrize(
    ("results", "keyframes", "expected"),
    [
        pytest.param(
            [result(0), result(1), result(2, False, NAN)], (0,), 2, id="at the failing step"
        ),
        pytest.param(
            [result(0), result(1, False, 1e9), result(2, False), result(3, False, NAN)],
            (0,),
            1,
            id="some steps before",
        ),
        pytest.param(
            [result(0), result(1, False, 1.1), result(2, False, NAN)], (0,), None, id="by little"
        ),
        pytest.param(
            [result(0, False), result(1, False), result(2, False, NAN)],
            (0,),
            None,
            id="from the first step on",
        ),
        pytest.param(
            [result(0), result(1, False, 1e9), result(2), result(3, False, NAN)],
            (0, 2),
            None,
            id="again after a keyframe",
        ),
        pytest.param(
            [result(0), result(1, False, 1e9), result(2), result(3)],
            (0, 2),
            1,
            id="kept by a keyframe",
        ),
        pytest.param(
            [result(0, None), result(1, False, 1e9), result(2, False, NAN)],
            (0,),
            None,
            id="nothing to compare before",
        ),
        pytest.param([result(0), result(1), result(2)], (0,), None, id="never"),
    ],
)
def test_a_departure_comes_once_and_after_exact_steps(
    results: list[StepResult], keyframes: tuple[int, ...], expected: int | None
) -> None:
    assert departure(results, keyframes) == expected


def test_the_first_replayed_step_may_depart_on_the_same_machine_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        faults, "describe_environment", lambda: dict.fromkeys(faults._SAME_MACHINE, "this")
    )
    assert departure([result(0, False, NAN)]) == 0
    assert departure([result(0, False, 1e9), result(1, False, NAN)]) == 0
    assert departure([result(0, False, NAN)], here=False) is None
