"""Which earlier steps of an eager loop are proved to run the failing step's program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from nanreplay.errors import ReplayError
from nanreplay.records import BatchRecord
from nanreplay.replay import Replay
from nanreplay.whatif.eager_windows import steps_of_program

FAILING = 3


def batch(step: int, **changes: Any) -> BatchRecord:
    given: dict[str, Any] = {
        "program": "p" if step == FAILING else "",
        "leaves": (np.full((4, 2), step, np.float32),),
        "paths": ("0",),
        "fingerprint": np.array([step, 1.0], np.float32),
        **changes,
    }
    return BatchRecord(**given)


def steps(
    changes: Mapping[int, Mapping[str, Any]],
    *,
    keyframes: Sequence[int] = (1, FAILING),
    gives: float = 1.0,
) -> tuple[int, ...]:
    """Ask for a window of the steps 1 to 3, of a program that gives (step, `gives`)."""

    def run(mode: str, arrays: Sequence[Any], variables: Any, fingerprint: Any) -> Any:
        return np.array([arrays[0][0, 0], gives], np.float32)

    capture = SimpleNamespace(
        keyframe_steps=keyframes, steps=range(1, FAILING + 1), keyframe=lambda step: {}
    )

    def batch_of(step: int) -> BatchRecord:
        if changes.get(step) == {"is_missing": True}:
            raise ReplayError("The batch is not held.")
        return batch(step, **changes.get(step, {}))

    replay = SimpleNamespace(
        capture=capture,
        variables=(),
        batch=batch_of,
        program=lambda step: SimpleNamespace(step=run),
    )
    return steps_of_program(cast("Replay", replay), FAILING)


def test_steps_whose_fingerprints_the_program_gives_are_its_own() -> None:
    assert steps({}) == (1, 2, 3)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({2: {"program": "q"}}, id="a program of its own"),
        pytest.param({1: {"fingerprint": None}}, id="nothing recorded to compare with"),
        pytest.param({FAILING: {"fingerprint": None}}, id="nothing recorded of the failing step"),
        pytest.param({2: {"fingerprint": np.ones(3, np.float32)}}, id="another branch"),
        pytest.param({2: {"leaves": (np.full((5, 2), 2, np.float32),)}}, id="another shape"),
        pytest.param({2: {"leaves": (np.full((4, 2), 2, np.float64),)}}, id="another type"),
        pytest.param({2: {"is_missing": True}}, id="a batch that is not held"),
        pytest.param({2: {"fingerprint": np.array([2.0, 7.0], np.float32)}}, id="other numbers"),
    ],
)
def test_where_anything_speaks_against_it_the_failing_step_stands_alone(
    changes: Mapping[int, Mapping[str, Any]],
) -> None:
    assert steps(changes) == (FAILING,)


def test_the_latest_keyframes_are_tried_where_earlier_ones_prove_nothing() -> None:
    changes = {1: {"fingerprint": None}}
    assert steps(changes, keyframes=(0, 1, 2, FAILING)) == (2, 3)  # of step 0 there is no batch


def test_a_program_that_gives_other_numbers_proves_nothing() -> None:
    assert steps({}, gives=1.0000001) == (FAILING,)
