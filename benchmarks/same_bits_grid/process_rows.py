"""Trainings under settings of the whole process: several devices, and switches of TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from same_bits_grid.hand_rows import trains_update
from same_bits_grid.loop_rows import batches, descend
from same_bits_grid.training import (
    BATCH,
    CLASSES,
    Attachment,
    Row,
    Trained,
    compiled,
    fit,
    fitted,
    integers,
    mlp,
    numbers,
    regression,
)

Train = Callable[[Attachment], Trained]


def two_devices() -> None:
    """Make two devices of the one processor, before TensorFlow uses it."""
    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)


def mirrored() -> Any:
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def trains_mirrored(
    model: Callable[[], Any] = mlp,
    x: Any = None,
    optimizer: Callable[[], Any] = keras.optimizers.Adam,
    **how: Any,
) -> Train:
    def train(attach: Attachment) -> Trained:
        with mirrored().scope():
            made = compiled(optimizer(), model=model(), **how)
        data = regression() if x is None else (x, numbers(len(x), CLASSES, seed=1))
        return fitted(attach, made, *data)

    return train


def words() -> Any:
    layers = [keras.layers.Embedding(30, 8), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input((6,), dtype="int32"), *layers])


def unknown_length(attach: Attachment) -> Trained:
    with mirrored().scope():
        model = compiled(keras.optimizers.SGD(0.05, weight_decay=0.1))
    data = tf.data.Dataset.from_tensor_slices(regression()).batch(BATCH).filter(lambda x, y: True)
    return fitted(attach, model, data)


class ByHand(keras.Sequential):
    """A step that assigns the weights of each replica."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = 0.5 * tf.reduce_mean(tf.square(self(x, training=True) - y))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def own_step() -> Any:
    layers = [keras.layers.Dense(16, "tanh"), keras.layers.Dense(CLASSES)]
    return ByHand([keras.Input((12,)), *layers])


def distributed_loop(attach: Attachment) -> Trained:
    strategy = mirrored()
    with strategy.scope():
        model, optimizer = mlp(), keras.optimizers.Adam(0.01)
        optimizer.build(model.trainable_variables)
    data = tf.data.Dataset.from_tensor_slices(regression()).batch(BATCH)

    @tf.function
    def step(batch: Any) -> Any:
        losses = strategy.run(lambda x, y: descend(model, optimizer, x, y), args=batch)
        return strategy.reduce("MEAN", losses, axis=None)

    run = attach.wrap(step, model=model, optimizer=optimizer)
    told = [run(batch) for batch in strategy.experimental_distribute_dataset(data)]
    return Trained([model], told, [optimizer])


def one_device(attach: Attachment) -> Trained:
    with tf.distribute.OneDeviceStrategy("CPU:1").scope():
        model = compiled()
    return fitted(attach, model)


def momentum_clipped() -> Any:
    return keras.optimizers.SGD(0.05, momentum=0.9, clipnorm=0.3)


DEVICES: dict[str, Train] = {
    "perceptron": trains_mirrored(),
    "embedding": trains_mirrored(words, integers(30, 40, 6)),
    "momentum, clipnorm": trains_mirrored(optimizer=momentum_clipped),
    "own train_step": trains_mirrored(own_step),
    "unknown length": unknown_length,
    "a loop": distributed_loop,
    "one of two devices": one_device,
}


# Switches


class Debugged(keras.Sequential):
    """Notes whether its step is eager, and reads a value where it is."""

    def train_step(self, data: Any) -> dict[str, Any]:
        self.seen.append(str(tf.executing_eagerly()))
        logs = super().train_step(data)
        if tf.executing_eagerly():
            self.seen.append(np.asarray(logs["loss"]))
        return logs


def debugged(attach: Attachment) -> Trained:
    layers = [keras.layers.Dense(8), keras.layers.Dropout(0.2), keras.layers.Dense(CLASSES)]
    model = Debugged([keras.Input((12,)), *layers])
    model.seen = []
    compiled("sgd", model=model)
    return Trained([model], [fit(attach, model), list(model.seen)])


def a_loop(attach: Attachment) -> Trained:
    model, optimizer = mlp(), keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)
    seen: list[str] = []

    @tf.function
    def step(x: Any, y: Any) -> Any:
        seen.append(str(tf.executing_eagerly()))
        return descend(model, optimizer, x, y)

    run = attach.wrap(step, model=model, optimizer=optimizer)
    return Trained([model], [[run(x, y) for x, y in batches()], seen], [optimizer])


def a_fit(attach: Attachment) -> Trained:
    return fitted(attach, compiled(loss_weights=0.2, metrics=["mae"]))


def by_hand(attach: Attachment) -> Trained:
    return trains_update(lambda w, g, slots: w.assign_sub(0.01 * g))(attach, jit=False)


def folds_nothing() -> None:
    tf.config.optimizer.set_experimental_options({"constant_folding": False})


def optimizes_nothing() -> None:
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def one_thread() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


SWITCHES: dict[str, tuple[Callable[[], Any], dict[str, Train]]] = {
    "functions run eagerly": (
        lambda: tf.config.run_functions_eagerly(True),
        {"fit": a_fit, "own train_step": debugged, "a loop": a_loop, "by hand": by_hand},
    ),
    "deterministic ops": (
        tf.config.experimental.enable_op_determinism,
        {"fit": a_fit, "a loop": a_loop},
    ),
    "clustering by XLA": (
        lambda: tf.config.optimizer.set_jit("autoclustering"),
        {"fit": a_fit, "by hand": by_hand},
    ),
    "no constant folding": (folds_nothing, {"fit": a_fit, "by hand": by_hand}),
    "no graph optimizer": (optimizes_nothing, {"fit": a_fit, "by hand": by_hand}),
    "one thread": (one_thread, {"fit": a_fit, "own train_step": debugged}),
    "numbers checked": (tf.debugging.enable_check_numerics, {"fit": a_fit, "a loop": a_loop}),
    "datasets debugged": (tf.data.experimental.enable_debug_mode, {"fit": a_fit}),
}
"""By switch, how it is set and the trainings under it."""


def process_rows() -> Iterator[Row]:
    for name, train in DEVICES.items():
        yield Row("two devices", name, train, two_devices)
    for switch, (prepare, trainings) in SWITCHES.items():
        for name, train in trainings.items():
            yield Row("switches", f"{switch}, {name}", train, prepare)
