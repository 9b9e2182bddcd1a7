"""What a fix says of a capture that it does not apply to, or whose code is not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from nanreplay import Capture, Recorder, Replay
from nanreplay.bisect import bisect
from nanreplay.findings import FixResult
from nanreplay.whatif.trial import what_if

pytestmark = [
    pytest.mark.filterwarnings("ignore:nanreplay. step"),  # what `on_nan="stop"` says
    pytest.mark.xdist_group("fix_notes"),
]


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A capture of one step, a logarithm of 0, without lines of code."""
    path = tmp_path_factory.mktemp("fix_notes") / "run.h5"
    weights, optimizer = tf.Variable([1.0, 0.5]), keras.optimizers.SGD(0.01)

    @tf.function(autograph=False)
    def step(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.math.log(batch * weights))
        optimizer.apply_gradients([(tape.gradient(loss, weights), weights)])
        return loss

    with Recorder(path, on_nan="stop", sources="none") as recorder:
        recorder.wrap(step, optimizer=optimizer)(tf.constant(np.float32([[1, 2], [3, 0]])))
    yield path
    keras.backend.clear_session(free_memory=False)


def tried(path: Path, fix: str) -> FixResult:
    with Capture(path) as capture, Replay(capture) as replay:
        bisection = bisect(replay, capture.timeline_record())
        return what_if(replay, bisection, (), [fix]).results[0]


@pytest.mark.parametrize(
    ("fix", "note"),
    [
        ("clip_data", "The capture holds no other batch that tells a usual range."),
        ("clip_data=5", "The batch of step 0 lies within -5 to 5."),
        ("clean_data=nan_to_num", "The batch of step 0 is finite."),
        ("stable_op", "No op is known that computes what `Log` does here and stays finite."),
        ("init=he", "The model has no kernel to draw anew."),
    ],
)
def test_a_fix_that_does_not_apply_says_what_is_so(one_step: Path, fix: str, note: str) -> None:
    result = tried(one_step, fix)
    assert (result.prevents, result.note) == (None, note)


def test_a_line_whose_code_was_not_recorded_is_named(one_step: Path) -> None:
    result = tried(one_step, "epsilon")
    assert result.prevents is True
    line = result.source.line if result.source is not None else 0
    place = f"in line {line} of test_fix_notes.py, whose code the capture does not hold"
    assert result.code == f"# Add 1e-7 to the operand of `Log`, {place}"
