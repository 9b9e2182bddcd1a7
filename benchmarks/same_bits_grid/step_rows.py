"""Models with a `train_step` of their own, or other methods that `fit` calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from same_bits_grid.training import (
    CLASSES,
    SAMPLES,
    Attachment,
    Row,
    Table,
    Trained,
    compiled,
    fitted,
    numbers,
    regression,
    with_and_without_xla,
)

MODELS = Table()
"""Sequential models with methods of their own."""


def gradients_of(model: Any, data: Any, factor: float = 1.0) -> tuple[Any, Any]:
    """The loss and the gradients of one batch."""
    x, y = data
    with tf.GradientTape() as tape:
        loss = factor * tf.reduce_mean(tf.square(model(x, training=True) - y))
    return loss, tape.gradient(loss, model.trainable_variables)


@MODELS.add
class OwnMetrics(keras.Sequential):
    """own metrics."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.tracked = [keras.metrics.Mean(name="mean"), keras.metrics.MeanAbsoluteError("mae")]

    @property
    def metrics(self) -> list[Any]:
        return self.tracked

    def train_step(self, data: Any) -> dict[str, Any]:
        loss, gradients = gradients_of(self, data, 0.3)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.tracked[0].update_state(loss)
        self.tracked[1].update_state(data[1], self(data[0], training=False))
        return {each.name: each.result() for each in self.tracked}


@MODELS.add
class ByHand(keras.Sequential):
    """weights assigned by hand."""

    def train_step(self, data: Any) -> dict[str, Any]:
        loss, gradients = gradients_of(self, data, 0.5)
        for weight, gradient in zip(self.trainable_variables, gradients, strict=True):
            weight.assign_sub(0.01 * gradient)
        return {"loss": loss, "norm": tf.linalg.global_norm(gradients)}


@MODELS.add
class Persistent(keras.Sequential):
    """a persistent tape and two updates."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            predicted = self(x, training=True)
            loss = self.compute_loss(x, y, predicted)
            spread = 0.1 * tf.math.reduce_std(predicted)
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        self.optimizer.apply(tape.gradient(spread, weights[:2]) + [0 * w for w in weights[2:]])
        return {**self.compute_metrics(x, y, predicted), "spread": spread}


@MODELS.add
class Penalised(keras.Sequential):
    """a penalty of the input's gradient, with noise."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seeds = keras.random.SeedGenerator(5)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        x = x + 0.1 * keras.random.normal(tf.shape(x), seed=self.seeds)
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(x)
                total = tf.reduce_sum(self(x, training=True))
            slope = inner.gradient(total, x)
            loss = self.compute_loss(x, y, self(x, training=True))
            loss += 0.1 * tf.reduce_mean(tf.square(tf.norm(slope, axis=-1) - 1.0))
        weights = self.trainable_variables
        gradients, norm = tf.clip_by_global_norm(tape.gradient(loss, weights), 1.0)
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return {"loss": loss, "norm": norm}


@MODELS.add
class Decorated(keras.Sequential):
    """a train_step that is a tf.function."""

    @tf.function
    def train_step(self, data: Any) -> dict[str, Any]:
        loss, gradients = gradients_of(self, data)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


@MODELS.add
class OwnLoss(keras.Sequential):
    """own compute_loss and compute_metrics."""

    def compute_loss(self, x: Any, y: Any, y_pred: Any, *more: Any, **named: Any) -> Any:
        return 0.2 * tf.reduce_mean(tf.abs(y_pred - y)) + tf.add_n([0.0, *self.losses])

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, **named: Any) -> dict[str, Any]:
        return {**super().compute_metrics(x, y, y_pred, **named), "most": tf.reduce_max(y_pred)}


@MODELS.add
class CallsSuper(keras.Sequential):
    """a train_step around that of Keras."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        return {**super().train_step((0.7 * x, y)), "rate": self.optimizer.learning_rate * 2.0}


@MODELS.add
class Teacher(keras.Sequential):
    """a second model that follows slowly."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.teacher = keras.Sequential([keras.Input((12,)), layers.Dense(CLASSES)])

    def train_step(self, data: Any) -> dict[str, Any]:
        x, _ = data
        logs = super().train_step((x, self.teacher(x)))
        weights = self.teacher.weights
        for slow, fast in zip(weights, [self.layers[-1].bias] * 2, strict=True):
            slow.assign(0.99 * slow + 0.01 * tf.reduce_mean(fast))
        return logs


class TwoUpdates(keras.Sequential):
    """A step that takes two batches."""

    def make_train_function(self, force: bool = False) -> Any:
        if self.train_function is not None and not force:
            return self.train_function

        @tf.function(jit_compile=self.jit_compile)
        def on_two(first: Any, second: Any) -> Any:
            self.train_step(first)
            return self.train_step(second)

        self.train_function = lambda iterator: on_two(next(iterator), next(iterator))
        return self.train_function


class ReadsValues(keras.Sequential):
    """A step that reads values, as only eager steps may."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.read: list[Any] = []

    def train_step(self, data: Any) -> dict[str, Any]:
        loss, gradients = gradients_of(self, data)
        scale = 0.5 if float(loss) > 1.0 else 1.0
        self.read.append(gradients[0].numpy())
        self.optimizer.apply([scale * each for each in gradients], self.trainable_variables)
        return {"loss": loss}


def build(model: type[Any]) -> Any:
    hidden = [layers.Dense(24, "tanh", kernel_regularizer="l2"), layers.Dropout(0.2)]
    return model([keras.Input((12,)), *hidden, layers.Dense(CLASSES)])


def step_rows() -> Iterator[Row]:
    for name, model in MODELS.items():
        yield from with_and_without_xla("train_step", name, trains(model))
        eagerly = trains(model, run_eagerly=True)
        yield Row("train_step", f"{name}, eagerly", lambda a, t=eagerly: t(a, jit=False))
    two = trains(TwoUpdates, steps_per_epoch=2)
    yield from with_and_without_xla("train_step", "own make_train_function", two)
    yield Row("train_step", "a step that reads values, eagerly", trains_values)
    yield from with_and_without_xla("train_step", "subclasses, an autoencoder", trains_subclass)
    if hasattr(keras.src.backend.tensorflow, "trainer"):
        yield Row("train_step", "a Trainer mixed into a layer", trains_layer)


def trains(
    model: type[Any],
    *,
    steps_per_epoch: int | None = None,
    **how: Any,
) -> Callable[..., Trained]:
    def train(attach: Attachment, *, jit: bool) -> Trained:
        made = compiled(model=build(model), jit=jit, **how)
        return fitted(attach, made, steps_per_epoch=steps_per_epoch)

    return train


def trains_values(attach: Attachment) -> Trained:
    model = compiled("sgd", model=build(ReadsValues), run_eagerly=True)
    told = fitted(attach, model).told
    return Trained([model], [told, [np.asarray(each) for each in model.read]])


class Sampling(layers.Layer):
    """Draws from a normal distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(7)

    def call(self, mean: Any, log_variance: Any) -> Any:
        noise = keras.random.normal(keras.ops.shape(mean), seed=self.seeds)
        return mean + keras.ops.exp(0.5 * log_variance) * noise


class Autoencoder(keras.Model):
    """A variational one, not built until its first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = layers.Dense(16, "relu")
        self.mean, self.log_variance = layers.Dense(3), layers.Dense(3)
        self.sampling, self.out = Sampling(), layers.Dense(12)

    def call(self, x: Any, training: bool = False) -> Any:
        hidden = self.hidden(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        ops = keras.ops
        divergence = 1 + log_variance - ops.square(mean) - ops.exp(log_variance)
        self.add_loss(-0.05 * ops.mean(divergence))
        return self.out(self.sampling(mean, log_variance))


def trains_subclass(attach: Attachment, *, jit: bool) -> Trained:
    x = numbers(SAMPLES, 12)
    return fitted(attach, compiled(model=Autoencoder(), jit=jit), x, x)


def trains_layer(attach: Attachment) -> Trained:
    """As Keras's own tests of its Trainer do it."""
    from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

    class Trainable(TensorFlowTrainer, layers.Dense):
        def __init__(self, units: int) -> None:
            layers.Dense.__init__(self, units)
            TensorFlowTrainer.__init__(self)

    return fitted(attach, compiled("sgd", model=Trainable(CLASSES)), *regression())
