"""A capture of one process replays bit for bit in another one: every loss, every gradient norm,
every variable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import warm_python
from conftest import environment
from trainings import BATCH, with_all_variables

from nanreplay import Capture, Recorder

Make = Callable[[], tuple[Any, Any]]
"""Makes a model and the shape of its rows."""
REPLAY = """
import sys
import numpy as np
from nanreplay import Capture, Replay
for path in sys.argv[1:]:
    with Capture(path) as capture, Replay(capture) as replay:
        results = replay.run_window("recorded")
        after = replay.state_after(results[-1].step)
        np.savez(path + ".npz", exact=[result.bit_exact for result in results],
        loss=[result.loss for result in results],
                 **{f"v{index}": np.asarray(value) for index, value in after.items()})
assert "keras" not in sys.modules or not any(name.startswith("trainings") for name in sys.modules)
"""


def mlp() -> tuple[Any, Any]:
    layers = [keras.layers.Dense(16, "relu"), keras.layers.Dropout(0.4), keras.layers.Dense(4)]
    return keras.Sequential([keras.Input((6,)), *layers]), (6,)


def cnn() -> tuple[Any, Any]:
    layers = [
        keras.layers.Conv2D(4, 3, padding="same"), keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.MaxPooling2D(), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4),
    ]  # fmt: skip
    return keras.Sequential([keras.Input((8, 8, 3)), *layers]), (8, 8, 3)


def lstm() -> tuple[Any, Any]:
    layers = [
        keras.layers.LSTM(6, return_sequences=True, recurrent_dropout=0.2),
        keras.layers.LSTM(5),
        keras.layers.Dense(4),
    ]
    return keras.Sequential([keras.Input((7, 3)), *layers]), (7, 3)


def transformer() -> tuple[Any, Any]:
    inputs = keras.Input((6, 8))
    attended = keras.layers.MultiHeadAttention(2, 4, dropout=0.1)(
        inputs, inputs, use_causal_mask=True
    )
    x = keras.layers.LayerNormalization()(inputs + attended)
    x = keras.layers.LayerNormalization()(
        x + keras.layers.Dense(8)(keras.layers.Dense(16, "gelu")(x))
    )
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(x))), (6, 8)


@pytest.mark.parametrize(
    ("makes", "jit_compile"),
    [
        pytest.param((cnn,), False, id="graph"),
        pytest.param((lstm, mlp, transformer), False, id="graph, more", marks=pytest.mark.slow),
        pytest.param((mlp, cnn, lstm, transformer), True, id="xla", marks=pytest.mark.slow),
    ],
)
def test_another_process_gives_the_same_bits(
    tmp_path: Path, makes: tuple[Make, ...], jit_compile: bool
) -> None:
    trainings = {tmp_path / f"{make.__name__}.h5": make for make in makes}
    trained = {path: train(path, make, jit_compile=jit_compile) for path, make in trainings.items()}
    warm_python.run(["-c", REPLAY, *trainings], check=True, env=environment())
    for path, (model, first_loss) in trained.items():
        assert_same_bits(path, model, first_loss)


def train(path: Path, make: Make, *, jit_compile: bool) -> tuple[Any, float]:
    """Train and record ten steps; returns the model and the loss of the first step."""
    keras.utils.set_random_seed(11)
    model, shape = make()
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=jit_compile,
    )
    with_all_variables(model)
    random = np.random.default_rng(5)
    x, y = random.normal(size=(40, *shape)).astype("float32"), random.integers(0, 4, 40)
    recorder, losses = Recorder(path), LossPerStep()
    model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0, callbacks=[recorder, losses])
    recorder.dump()
    return model, losses.of_first_step[0]


def assert_same_bits(path: Path, model: Any, first_loss: float) -> None:
    """Assert that the other process found the recorded losses and the trained variables."""
    found = np.load(f"{path}.npz")
    assert found["exact"].all(), path.stem
    assert len(found["exact"]) == 10
    trained = {
        variable.path: np.asarray(variable)
        for variable in [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    }
    with Capture(path) as capture:
        names = [info.path for info in capture.variables_info]
        np.testing.assert_allclose(
            capture.timeline()["loss"], found["loss"], rtol=1e-5
        )  # told of what each step added to a mean
    assert found["loss"][0] == pytest.approx(first_loss, rel=1e-6)
    assert {name for name in names if not name.startswith("variable_")} >= {
        variable.path for variable in model.trainable_variables
    }
    for index, name in enumerate(names):
        if name in trained and sum(other == name for other in names) == 1:
            assert found[f"v{index}"].tobytes() == trained[name].tobytes(), (path.stem, name)


class LossPerStep(keras.callbacks.Callback):
    """Keras logs a running mean; that of the first step is its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.of_first_step: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            self.of_first_step.append(float(logs["loss"]))
