"""What it is that a user wraps: functions, methods and objects, around compiled functions."""

from __future__ import annotations

import functools
from typing import Any

import keras
import tensorflow as tf

from loop_shapes.base import FEATURES, ROWS, Run, Spread, error, make, shape, update


@shape()
def plain_function(run: Run) -> Any:
    model, optimizer = make()

    def inner(x: Any, y: Any) -> Any:
        return update(model, optimizer, x, y)

    inner = run.compiled(inner)

    def step(x: Any, y: Any) -> Any:
        return inner(tf.reshape(x, [-1, FEATURES]), y)

    return run.loop(step, model, optimizer)


@shape()
def plain_function_around_several(run: Run) -> Any:
    """One compiled function for the gradients, one for the update, one that only measures."""
    model, optimizer = make()
    seen = tf.Variable(0.0)

    def gradients(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = error(model, x, y)
        return loss, tape.gradient(loss, model.trainable_variables)

    def apply(found: Any) -> None:
        optimizer.apply_gradients(zip(found, model.trainable_variables, strict=True))

    def measure(loss: Any) -> None:
        seen.assign_add(loss)

    gradients, apply = run.compiled(gradients), run.compiled(apply)
    measure = run.compiled(measure)

    def step(x: Any, y: Any) -> Any:
        loss, found = gradients(x, y)
        apply(found)
        measure(loss)
        return loss

    return [*run.loop(step, model, optimizer), seen]


@shape()
def compiled_lambda(run: Run) -> Any:
    model, optimizer = make()
    step = run.compiled(lambda x, y: update(model, optimizer, x, y))
    return run.loop(step, model, optimizer)


@shape()
def lambda_around_a_function_traced_before(run: Run) -> Any:
    model, optimizer = make()
    inner = run.compiled(lambda x, y: update(model, optimizer, x, y))
    inner(tf.ones([ROWS, FEATURES]) * tf.range(4.0), tf.zeros([ROWS, 1]))
    return run.loop(lambda x, y: inner(x, y), model, optimizer)


@shape()
def traced_before(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        return update(model, optimizer, x, y)

    step = run.compiled(step)
    for _ in range(2):
        step(tf.ones([ROWS, FEATURES]) * tf.range(4.0), tf.zeros([ROWS, 1]))
    return run.loop(step, model, optimizer)


@shape()
def partial_of_a_compiled_function(run: Run) -> Any:
    model, optimizer = make()
    step = functools.partial(run.compiled(update), model, optimizer)
    return run.loop(step, model, optimizer)


@shape()
def compiled_partial(run: Run) -> Any:
    model, optimizer = make()

    def step(model: Any, x: Any, y: Any, *, optimizer: Any) -> Any:
        return update(model, optimizer, x, y)

    step = run.compiled(functools.partial(step, model, optimizer=optimizer))
    return run.loop(step, model, optimizer)


class Trainer:
    """The usual class around a training: a compiled method, and a plain one that calls it."""

    def __init__(self, run: Run) -> None:
        self.model, self.optimizer = make()
        self.losses: list[float] = []
        self._update = run.compiled(self._update)  # type: ignore[method-assign]

    def _update(self, x: Any, y: Any) -> Any:
        return update(self.model, self.optimizer, x, y)

    def train_step(self, batch: Any) -> dict[str, float]:
        x, y = batch
        self.losses.append(float(self._update(tf.constant(x), tf.constant(y))))
        return {"loss": self.losses[-1]}

    def __call__(self, x: Any, y: Any) -> Any:
        return self._update(x, y)


@shape()
def bound_method(run: Run) -> Any:
    trainer = Trainer(run)
    step = run.wrap(trainer.train_step, model=trainer.model, optimizer=trainer.optimizer)
    for x, y in run.arrays():
        step((x, y))
    return [trainer.model, trainer.optimizer]


@shape()
def compiled_bound_method(run: Run) -> Any:
    trainer = Trainer(run)
    return run.loop(trainer._update, trainer.model, trainer.optimizer)


@shape()
def method_that_is_put_back(run: Run) -> Any:
    """The recorded step takes the place of the method, and the object's own loop calls it."""
    trainer = Trainer(run)
    of = {"model": trainer.model, "optimizer": trainer.optimizer}
    trainer._update = run.wrap(trainer._update, **of)  # type: ignore[method-assign]
    for batch in run.arrays():
        trainer.train_step(batch)
    return [trainer.model, trainer.optimizer]


@shape()
def callable_object(run: Run) -> Any:
    trainer = Trainer(run)
    return run.loop(trainer, trainer.model, trainer.optimizer)


@shape()
def module_with_a_compiled_call(run: Run) -> Any:
    class Training(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.optimizer = make()

        def one(self, x: Any, y: Any) -> Any:
            return update(self.model, self.optimizer, x, y)

    training = Training()
    return run.loop(run.compiled(training.one), training.model, training.optimizer)


@shape(eager="a signature belongs to a tf.function")
def input_signature(run: Run) -> Any:
    model, optimizer = make()
    signature = [tf.TensorSpec([None, FEATURES]), tf.TensorSpec([None, 1])]

    def step(x: Any, y: Any) -> Any:
        return update(model, optimizer, x, y)

    return run.loop(run.compiled(step, input_signature=signature), model, optimizer)


@shape(eager="nothing is traced")
def fewer_traces(run: Run) -> Any:
    """`reduce_retracing`, with batches of many sizes."""
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        return update(model, optimizer, x, y)

    step = run.compiled(step, reduce_retracing=True)
    step = run.wrap(step, model=model, optimizer=optimizer)
    for number, (x, y) in enumerate(run.batches()):
        rows = 4 + number % 4
        step(x[:rows], y[:rows])
    return [model, optimizer]


@shape()
def decorated_function(run: Run) -> Any:
    model, optimizer = make()
    calls = []

    def counted(function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return function(*args, **kwargs)

        return call

    inner = run.compiled(lambda x, y: update(model, optimizer, x, y))

    @counted
    def step(x: Any, y: Any) -> Any:
        return inner(x, y)

    return run.loop(step, model, optimizer)


@shape(eager="nothing is traced", may_refuse=True)
def concrete_function(run: Run) -> Any:
    """What `get_concrete_function` gives is called, not the `tf.function` itself."""
    model, optimizer = make()
    signature = [tf.TensorSpec([ROWS, FEATURES]), tf.TensorSpec([ROWS, 1])]
    step = run.compiled(lambda x, y: update(model, optimizer, x, y))
    step = step.get_concrete_function(*signature)
    return run.loop(lambda x, y: step(x, y), model, optimizer)


@shape()
def model_built_by_its_first_batch(run: Run) -> Any:
    keras.utils.set_random_seed(7)
    layers = [Spread(name="spread"), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    optimizer = keras.optimizers.Adam(0.01)

    def step(x: Any, y: Any) -> Any:
        return update(model, optimizer, x, y)

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def nested_functions(run: Run) -> Any:
    model, optimizer = make()
    forward = run.compiled(lambda x, y: error(model, x, y))

    def apply(gradients: Any) -> None:
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    apply = run.compiled(apply)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = forward(x, y)
        apply(tape.gradient(loss, model.trainable_variables))
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def nested_function_without_output(run: Run) -> Any:
    model, optimizer = make()

    def inner(x: Any, y: Any) -> None:
        update(model, optimizer, x, y)

    inner = run.compiled(inner)

    def step(x: Any, y: Any) -> None:
        inner(x, y)

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def three_functions_deep(run: Run) -> Any:
    model, optimizer = make()
    innermost = run.compiled(lambda x, y: update(model, optimizer, x, y))
    middle = run.compiled(lambda x, y: {"loss": innermost(x * 0.5, y)})
    return run.loop(run.compiled(lambda x, y: middle(x * 2.0, y)["loss"]), model, optimizer)


@shape(eager="nothing is compiled", xla="the outer function is XLA's as well", slow=True)
def compiled_by_xla_inside(run: Run) -> Any:
    """Only the inner function has `jit_compile=True`."""
    model, optimizer = make()
    inner = tf.function(lambda x, y: update(model, optimizer, x, y), jit_compile=True)
    return run.loop(run.compiled(lambda x, y: inner(x, y) * 1.0), model, optimizer)


@shape()
def inner_step(run: Run) -> Any:
    """The step that is wrapped is called by a compiled function of the user's."""
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        loss = update(model, optimizer, x, y)
        return tf.where(loss > 1e9, 1e9, loss)

    step = run.wrap(step, model=model, optimizer=optimizer)
    outer = run.compiled(lambda x, y: step(x, y))
    for x, y in run.batches():
        outer(x, y)
    return [model, optimizer]


@shape()
def inner_compiled_step(run: Run) -> Any:
    """Likewise, and the step is compiled itself."""
    model, optimizer = make()
    step = run.compiled(lambda x, y: update(model, optimizer, x, y))
    step = run.wrap(step, model=model, optimizer=optimizer)
    outer = run.compiled(lambda x, y: step(x, y))
    for x, y in run.batches():
        outer(x, y)
    return [model, optimizer]
