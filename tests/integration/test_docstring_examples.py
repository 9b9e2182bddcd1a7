"""The examples in the docstrings of what users call, run as they stand there."""

import doctest
import importlib
import shutil
import types
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from trainings import with_all_variables

import nanreplay
from nanreplay import pytest_plugin

ROOT = Path(__file__).parents[2]
CALLED = ("Recorder", "Recorder.wrap", "Capture", "Replay", "explain", "replay_with")
# Keras says so of every `tf.data.Dataset` that `fit` is given.
pytestmark = pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
WANTED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def model_of(hidden: str) -> Any:
    """The model of the sample's training, with its loss mended."""
    layers = [
        keras.Input((4,), name="measurements"),
        keras.layers.Dense(16, activation="relu", name=hidden),
        keras.layers.Dense(3, activation="softmax", name="species"),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(1e-2), loss="categorical_crossentropy", jit_compile=False)
    return with_all_variables(model)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the examples take for granted: a training, and in this folder a capture and its code."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "sample_runs" / "log_of_zero.h5", "run.h5")
    shutil.copy(ROOT / "tests" / "integration" / "plugin_project" / "train.py", "train.py")
    model, optimizer = model_of("hidden"), keras.optimizers.SGD(0.01)
    features, labels = tf.random.uniform((8, 4), seed=1), tf.one_hot(tf.range(8) % 3, 3)

    @tf.function
    def train_step(batch: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(batch[0]) - batch[1]) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return {
        **{name: getattr(nanreplay, name) for name in nanreplay.__all__},
        "model": model,
        "optimizer": optimizer,
        "data": tf.data.Dataset.from_tensor_slices((features, labels)).batch(4),
        "train_step": train_step,
        "trainer": types.SimpleNamespace(train_step=train_step, model=model),
        "make_renamed_model": lambda: model_of("features"),
    }


def run(docstring: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the examples of a docstring, two at least; returns the names that they made."""
    test = doctest.DocTestParser().get_doctest(docstring, names, "docstring", None, None)
    runner = doctest.DocTestRunner(optionflags=WANTED)
    told: list[str] = []
    runner.run(test, out=told.append, clear_globs=False)
    assert not runner.failures, "".join(told)
    assert len(test.examples) >= 2
    return test.globs


@pytest.mark.parametrize("called", CALLED)
def test_the_examples_of_a_docstring_run(called: str, names: dict[str, Any]) -> None:
    name, _, method = called.partition(".")
    documented = getattr(nanreplay, name)
    run((getattr(documented, method) if method else documented).__doc__, names)


def test_the_examples_of_the_fixture_are_tests(names: dict[str, Any]) -> None:
    # pytest before 8.4 keeps a fixture's function in another place
    fixture = pytest_plugin.nan_recorder
    function = getattr(fixture, "__wrapped__", None) or fixture._get_wrapped_function()
    made = run(function.__doc__, names)
    for name in ("test_fit_stays_finite", "test_the_loop_stays_finite"):
        with nanreplay.Recorder(f"{name}.h5") as recorder:
            made[name](recorder)
        assert recorder.path is None


def test_each_argument_of_what_users_call_is_documented() -> None:
    for called in CALLED:
        name, _, method = called.partition(".")
        documented = getattr(importlib.import_module("nanreplay"), name)
        function = getattr(documented, method) if method else documented
        code = (function.__init__ if isinstance(function, type) else function).__code__
        count = code.co_argcount + code.co_kwonlyargcount
        for argument in code.co_varnames[:count]:
            if argument != "self":
                assert f"{argument}:" in function.__doc__, (called, argument)
