"""Trainings that nobody recorded: they leave logs and checkpoints, written by the real writers.

Each function trains in a folder and returns what the logs should tell. Models are tiny; what goes
wrong is real: a learning rate, a row of the data, a range, a schedule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

BATCH, BATCHES = 16, 8
Csv = keras.callbacks.CSVLogger


@dataclass
class Told:
    """What the logs of a training should tell."""

    kind: str | None
    """None for a training that stayed finite."""
    at: float | None = None
    """Step or epoch of the first non-finite value."""
    last_healthy: str | None = None
    """End of the path of the last healthy checkpoint."""
    hit_layers: tuple[str, ...] | None = None
    trigger: str | None = None
    words: tuple[str, ...] = field(default=())
    """What the sentence or a note must say."""


def data(n: int = BATCH * BATCHES, seed: int = 0) -> tuple[Any, Any]:
    """Inputs and targets of a linear task."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 4)).astype("float32")
    y = (x @ np.array([1.0, -2.0, 0.5, 3.0]) + 0.1 * random.normal(size=n)).astype("float32")
    return x, y[:, None]


def small_model(learning_rate: float = 0.01, **options: Any) -> keras.Model:
    """Two dense layers with SGD."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.layers.Input((4,)),
            keras.layers.Dense(8, activation="tanh", name="hidden"),
            keras.layers.Dense(1, name="head"),
        ]
    )
    optimizer = keras.optimizers.SGD(learning_rate)
    model.compile(optimizer, "mse", jit_compile=False, **options)
    return model


def keras_writers(folder: Path) -> list[Any]:
    """Keras's own writers of logs and checkpoints."""
    return [
        keras.callbacks.TensorBoard(str(folder / "tb"), update_freq=1, write_graph=False),
        keras.callbacks.CSVLogger(str(folder / "training.csv"), append=True),
        keras.callbacks.ModelCheckpoint(
            str(folder / "checkpoints" / "model.{epoch:02d}.weights.h5"), save_weights_only=True
        ),
    ]


def fit(model: keras.Model, folder: Path, x: Any, y: Any, epochs: int, **options: Any) -> None:
    """Train in the order of the data, and write everything."""
    options.setdefault("callbacks", keras_writers(folder))
    model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, **options)


# What fails.


def divergence(folder: Path) -> Told:
    """The learning rate is too high for a linear model without a bound."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1, name="head")])
    model.compile(keras.optimizers.SGD(1.5), "mse", jit_compile=False)
    x, y = data()
    fit(model, folder, x, y, 8)
    losses = _step_losses(folder)
    return Told(
        "divergence", _first_bad(losses), "model.06.weights.h5", words=("grew without return",)
    )


def _step_losses(folder: Path) -> list[tuple[int, float]]:
    """Steps and losses of every batch, by TensorFlow's own reader of event files."""
    from tensorflow.core.util import event_pb2

    found = []
    for file in sorted((folder / "tb" / "train").glob("*tfevents*")):
        for record in tf.data.TFRecordDataset(str(file)):
            event = event_pb2.Event.FromString(record.numpy())
            found += [
                (int(event.step), float(tf.make_ndarray(value.tensor)))
                for value in event.summary.value
                if value.tag == "batch_loss"
            ]
    return found


def _first_bad(losses: list[tuple[int, float]]) -> int:
    return next(step for step, value in losses if not np.isfinite(value))


def fit_changed(
    folder: Path, model: Any, epochs: int, at: int, change: Callable[[Any], Any], **options: Any
) -> None:
    """Train on the batches of `data`, of which the one of step `at`, from 1, is changed."""
    x, y = data()
    x, y = np.tile(x, (epochs, 1)), np.tile(y, (epochs, 1))
    rows = slice((at - 1) * BATCH, at * BATCH)
    x[rows] = change(x[rows])
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    options.setdefault("callbacks", keras_writers(folder))
    model.fit(batches, steps_per_epoch=BATCHES, epochs=epochs, verbose=0, **options)


def bad_row(folder: Path) -> Told:
    """A row of the data is NaN in the third epoch."""

    def with_nan(x: Any) -> Any:
        x[3, 1] = np.nan
        return x

    fit_changed(folder, small_model(), 4, 2 * BATCHES + 5, with_nan)
    return Told(
        "sudden", 2 * BATCHES + 5, "model.02.weights.h5", ("hidden", "head"), words=("calm",)
    )


def spike(folder: Path) -> Told:
    """One batch is 1e22 times too large: the loss is infinite at once."""

    def huge(x: Any) -> Any:
        return x * np.float32(1e22)

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1, name="head")])
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    fit_changed(folder, model, 5, 3 * BATCHES + 3, huge)
    return Told("sudden", 3 * BATCHES + 3, "model.03.weights.h5", ("head",))


def from_step_0(folder: Path) -> Told:
    """The targets are NaN."""
    x, y = data()
    fit(small_model(), folder, x, y * np.nan, 2)
    return Told("from_start", 1, None, ("hidden", "head"))


def validation_only(folder: Path) -> Told:
    """The data of the validation holds a NaN."""
    x, y = data()
    validation_x = x[:32].copy()
    validation_x[5, 0] = np.nan
    fit(small_model(), folder, x, y, 3, validation_data=(validation_x, y[:32]))
    return Told("validation", BATCHES, "model.03.weights.h5", words=("Only the validation",))


@keras.saving.register_keras_serializable("logged_trainings")
class Ratio(keras.metrics.Metric):
    """0/0 once the model is good."""

    def __init__(self, name: str = "ratio", **options: Any) -> None:
        super().__init__(name=name, **options)
        self.far = self.add_variable((), "zeros", name="far")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count what is far off."""
        far = keras.ops.cast(keras.ops.abs(y_true - y_pred) > 2.0, "float32")
        self.far.assign_add(keras.ops.sum(far))

    def result(self) -> Any:
        """A share of what is far off."""
        return self.far / self.far


def metric_only(folder: Path) -> Told:
    """A metric turns NaN while the loss falls."""
    x, y = data()
    model = small_model(0.05, metrics=[Ratio()])
    csv = keras.callbacks.CSVLogger(str(folder / "training.csv"))
    fit(model, folder, x, y, 32, callbacks=[csv])
    return Told("metric", None, None, words=("Only a metric",))


class LogEachStep(keras.callbacks.Callback):
    """Logs the loss and the learning rate of each step with `tf.summary`."""

    def __init__(self, folder: Path, rate: Callable[[int], float] | None = None) -> None:
        super().__init__()
        self._writer = tf.summary.create_file_writer(str(folder / "events"))
        self._rate = rate
        self._step = 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Set the learning rate."""
        if self._rate is not None:
            self.model.optimizer.learning_rate = self._rate(self._step)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Log."""
        self._step += 1
        with self._writer.as_default(step=self._step):
            tf.summary.scalar("loss", logs["loss"])
            rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
            tf.summary.scalar("learning_rate", rate)

    def on_train_end(self, logs: Any = None) -> None:
        """Write all of it."""
        self._writer.close()


def schedule_step(folder: Path) -> Told:
    """The learning rate steps up at step 24."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1, name="head")])
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    x, y = data()
    log = LogEachStep(folder, lambda step: 0.01 if step < 24 else 5.0)
    checkpoints = keras_writers(folder)[2]
    fit(model, folder, x, y, 7, callbacks=[log, checkpoints])
    return Told(
        "divergence",
        44,
        "model.05.weights.h5",
        trigger="learning_rate",
        words=("stepped up from 0.01 to 5",),
    )


def restart(folder: Path) -> Told:
    """Resumed after three epochs with another learning rate: it diverges from there."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1, name="head")])
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    x, y = data()
    fit(model, folder, x, y, 3)
    model.compile(keras.optimizers.SGD(5.0), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(3 * BATCHES)
    fit(model, folder, x, y, 7, initial_epoch=3)
    return Told("divergence", 44, "model.05.weights.h5", trigger="restart")


def resumed(folder: Path) -> Told:
    """Ends with an error in the third epoch, is resumed by `BackupAndRestore`, meets a bad row."""

    class KilledError(Exception):
        pass

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if (self.epoch, batch) == (2, 3):
                raise KilledError

    def with_infinity(x: Any) -> Any:
        x[0, 0] = np.inf  # the loss is finite, its gradient is not: the next loss is hit
        return x

    def callbacks() -> list[Any]:
        backup = keras.callbacks.BackupAndRestore(str(folder / "backup"), delete_checkpoint=False)
        # CSVLogger closes its file where `fit` ends without an error alone
        return [backup, *(each for each in keras_writers(folder) if not isinstance(each, Csv))]

    x, y = data()
    with contextlib.suppress(KilledError):
        fit(small_model(), folder, x, y, 6, callbacks=[*callbacks(), Kill()])
    # the data goes on from its beginning: the batch of the third epoch after the restart
    fit_changed(folder, small_model(), 6, 2 * BATCHES + 2, with_infinity, callbacks=callbacks())
    return Told("sudden", 4 * BATCHES + 3, "model.04.weights.h5", ("hidden", "head"))


def half_precision(folder: Path) -> Told:
    """A loop in float16 whose loss grows to the end of its range."""
    writer = tf.summary.create_file_writer(str(folder))
    weight = tf.Variable(tf.ones((4,), tf.float16), name="weight")
    checkpoint = tf.train.Checkpoint(weight=weight, step=tf.Variable(0, dtype=tf.int64))
    first = None
    for step in range(40):
        loss = tf.reduce_sum(tf.square(weight))
        with writer.as_default(step=step):
            tf.summary.scalar("loss", tf.cast(loss, tf.float32))
        if first is None and not np.isfinite(float(loss)):
            first = step
        if step % 5 == 0:
            checkpoint.step.assign(step)
            checkpoint.write(str(folder / f"step_{step}"))
        weight.assign(weight * tf.constant(1.25, tf.float16))
    writer.close()
    assert first is not None
    return Told("half_precision", first, f"step_{first // 5 * 5}", words=("65504",))


def loss_scale(folder: Path) -> Told:
    """Every gradient is NaN while the loss is finite: the scale falls, and no update is made."""

    def root_at_zero(y_true: Any, y_pred: Any) -> Any:
        return keras.ops.square(y_true - y_pred) + keras.ops.sqrt(0.0 * y_pred)

    keras.utils.set_random_seed(1)
    policy = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1, name="head")])
        model.compile(keras.optimizers.SGD(0.01), root_at_zero, jit_compile=False)
        x, y = data()
        writer = tf.summary.create_file_writer(str(folder))
        for step in range(24):
            loss = model.train_on_batch(x[:BATCH], y[:BATCH])
            with writer.as_default(step=step):
                tf.summary.scalar("loss", loss)
                tf.summary.scalar("loss_scale", model.optimizer.dynamic_scale)
        writer.close()
    finally:
        keras.mixed_precision.set_dtype_policy(policy)
    return Told("loss_scale", None, words=("The loss scale fell",))


def one_layer(folder: Path) -> Told:
    """The gradient of a square root at 0 hits the embedding of one of two branches."""
    left = tf.Variable(tf.ones((3,)), name="left/kernel")
    right = tf.Variable(tf.ones((3,)), name="right/kernel")
    checkpoint = tf.train.Checkpoint(left=left, right=right, step=tf.Variable(0, dtype=tf.int64))
    writer = tf.summary.create_file_writer(str(folder))
    for step in range(30):
        x = tf.zeros((3,)) if step == 17 else tf.constant([1.0, 2.0, 3.0])
        with tf.GradientTape() as tape:
            # a loss that no NaN of the weights reaches: the branch is dropped from it
            loss = tf.sqrt(tf.reduce_sum(tf.square(left * x))) + tf.reduce_sum(right**2)
        gradients = tape.gradient(loss, [left, right])
        for variable, gradient in zip((left, right), gradients, strict=True):
            variable.assign_sub(0.01 * gradient)
        with writer.as_default(step=step):
            tf.summary.scalar("loss", loss)
        checkpoint.step.assign(step + 1)
        checkpoint.write(str(folder / "checkpoints" / f"step_{step + 1}"))
    writer.close()
    return Told("sudden", 18, "step_17", ("left",))


FAILING: dict[str, Callable[[Path], Told]] = {
    each.__name__: each
    for each in (
        divergence, spike, bad_row, half_precision, schedule_step, restart, validation_only,
        metric_only, from_step_0, loss_scale, one_layer, resumed,
    )
}  # fmt: skip


# What stays healthy.


def _logged(folder: Path, rows: Iterator[dict[str, float]]) -> None:
    writer = tf.summary.create_file_writer(str(folder))
    for step, row in enumerate(rows):
        with writer.as_default(step=step):
            for tag, value in row.items():
                tf.summary.scalar(tag, value)
    writer.close()


def noisy(folder: Path) -> Told:
    """Heavy noise, spikes that come back, and a learning rate that is restarted."""
    random = np.random.default_rng(0)

    def rows() -> Iterator[dict[str, float]]:
        for step in range(300):
            loss = 2.0 * np.exp(-step / 90) * random.lognormal(0, 0.5) + 0.02
            loss *= 300.0 if step in (77, 180, 299) else 1.0
            yield {"loss": loss, "lr": 0.1 * (1 + np.cos(np.pi * (step % 50) / 50)) + 1e-4}

    _logged(folder, rows())
    return Told(None)


def skipped_updates(folder: Path) -> Told:
    """A loss scale that skips updates with infinite gradients, as it should."""

    def rows() -> Iterator[dict[str, float]]:
        scale = 65536.0
        for step in range(300):
            is_skipped = step in (0, 1, 60, 190)
            scale = scale / 2 if is_skipped else scale * (2 if step % 100 == 99 else 1)
            norm = np.inf if is_skipped else 1.0
            yield {"loss": 1.0 / (1 + step), "loss_scale": scale, "grad_norm": norm}

    _logged(folder, rows())
    return Told(None)


def one_bad_metric(folder: Path) -> Told:
    """A metric that is no number in one epoch, and one that never is."""
    x, y = data()
    model = small_model()

    class Extra(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["precision"] = np.nan if epoch == 2 else 0.5
            logs["recall_of_nobody"] = np.nan

    fit(model, folder, x, y, 5, callbacks=[Extra(), *keras_writers(folder)])
    return Told(None, None, "model.05.weights.h5", words=("`precision`", "`recall_of_nobody`"))


def plain(folder: Path) -> Told:
    """A training as it should be, with everything that Keras writes."""
    x, y = data()
    backup = keras.callbacks.BackupAndRestore(str(folder / "backup"), delete_checkpoint=False)
    fit(
        small_model(), folder, x, y, 4,
        validation_data=(x, y), callbacks=[*keras_writers(folder), backup],
    )  # fmt: skip
    return Told(None)


HEALTHY: dict[str, Callable[[Path], Told]] = {
    each.__name__: each for each in (noisy, skipped_updates, one_bad_metric, plain)
}
