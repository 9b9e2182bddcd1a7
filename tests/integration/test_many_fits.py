"""A search trains many models in one process: what a recorder takes of memory goes with its
training."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from nanreplay import NonFiniteError, Recorder

ONCE = Path(__file__).resolve().parents[2] / "benchmarks" / "many_fits_once.py"


def _graphs() -> dict[int, Any]:
    gc.collect()  # the recorder, which lets go of the graph
    gc.collect()
    return {
        id(each): each for each in gc.get_objects() if isinstance(each, tf.__internal__.FuncGraph)
    }


def _fit_to_nan(path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    try:
        model.fit(
            np.full((4, 2), np.nan, np.float32),
            np.zeros((4, 1)),
            batch_size=2,
            verbose=0,
            callbacks=[Recorder(path)],
        )
    except NonFiniteError:
        return
    pytest.fail("the NaN was not noticed")


def _fit() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 2), np.float32), np.zeros((4, 1)), batch_size=2, verbose=0)


def test_a_recorded_fit_and_its_dump_leave_no_more_graphs_than_a_bare_one(tmp_path: Path) -> None:
    """TensorFlow keeps each step that holds a custom gradient, and that of every Keras optimizer
    holds one."""
    _fit()
    _fit_to_nan(tmp_path / "first.h5")
    first = _graphs()
    _fit()
    bare = _graphs()
    _fit_to_nan(tmp_path / "run.h5")
    assert (tmp_path / "run.h5").exists()
    assert len(_graphs().keys() - bare.keys()) <= len(bare.keys() - first.keys())


def test_a_function_of_the_user_keeps_its_custom_gradient_when_the_recorder_is_gone(
    tmp_path: Path,
) -> None:
    @tf.custom_gradient
    def tripled(x: Any) -> Any:
        return x, lambda upstream: 3 * upstream

    inner = tf.function(tripled)
    weight = tf.Variable(1.0)

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = inner(weight) * x
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    with Recorder(tmp_path / "run.h5") as recorder:
        recorder.wrap(tf.function(step))(tf.constant(1.0))
    del recorder
    gc.collect()
    np.testing.assert_allclose(weight, 0.7)
    with tf.GradientTape() as tape:
        value = inner(weight)
    assert tape.gradient(value, weight) == 3


STACK_MIB = 20 / 1024
"""What TensorFlow keeps of the stack of an op in `fit` once it was read; measured: 18 KiB."""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["recorder", "incident", "dump"])
def test_a_recorded_fit_leaves_no_more_memory_than_a_bare_one(mode: str, tmp_path: Path) -> None:
    """But for the stacks of the ops that a file names, in the graph that TensorFlow never frees."""
    bare, _ = _mib_per_fit("bare", tmp_path)
    recorded, ops = _mib_per_fit(mode, tmp_path)
    assert recorded <= bare + 0.5 + STACK_MIB * ops


def _mib_per_fit(mode: str, folder: Path) -> tuple[float, int]:
    """(MiB that each training leaves, ops that its file describes)."""
    done = subprocess.run(
        [sys.executable, ONCE, mode, "16", folder], capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout.splitlines()[-1])
    resident: list[float] = facts["resident_mib"]
    return (resident[-1] - resident[5]) / (len(resident) - 6), facts["ops"]
