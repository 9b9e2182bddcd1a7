"""`if`, `while` and `for` on tensors, which AutoGraph makes ops of, and such ops by hand."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from loop_shapes.base import Run, error, make, shape, update


@shape()
def if_after_the_loss(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = error(model, x, y)
            if loss > 1.0:
                loss = loss * 0.5
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def update_in_a_branch(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        loss = tf.constant(0.0)
        if tf.reduce_mean(y) < 1e3:
            loss = update(model, optimizer, x, y)
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def update_unless_the_loss_is_not_finite(run: Run) -> Any:
    """A guard of the user's own: the weights stay finite, the loss that is returned is not."""
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = error(model, x, y)
        gradients = tape.gradient(loss, model.trainable_variables)
        if tf.math.is_finite(loss):
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def if_in_a_function_that_the_step_calls(run: Run) -> Any:
    model, optimizer = make()

    def limited(loss: Any) -> Any:
        if loss > 2.0:
            return 2.0 + 0.1 * (loss - 2.0)
        return loss

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = limited(error(model, x, y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape(loop=[0])
def for_over_a_range(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        loss = 0.0
        for _ in tf.range(3):
            loss = update(model, optimizer, x, y)
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape(loop=[0])
def for_with_a_break(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        loss = 0.0
        for number in tf.range(5):
            if number > 1:
                break
            loss = update(model, optimizer, x, y)
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape(loop=[0])
def while_on_a_tensor(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        number, loss = tf.constant(0), tf.constant(0.0)
        while number < 2:
            loss = update(model, optimizer, x, y)
            number += 1
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape(loop=[0])
def for_over_the_parts_of_a_batch(run: Run) -> Any:
    """Two micro-batches of four rows; row 3 is in the first."""
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        total = 0.0
        for part in tf.stack([tf.range(4), tf.range(4, 8)]):
            total += update(model, optimizer, tf.gather(x, part), tf.gather(y, part))
        return total

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def loop_of_python(run: Run) -> Any:
    """A range of Python's is unrolled as the step is traced."""
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        for _ in range(2):
            loss = update(model, optimizer, x, y)
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def conditional_op(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        return tf.cond(
            tf.reduce_max(x) > 1e6,
            lambda: update(model, optimizer, x / 1e6, y),
            lambda: update(model, optimizer, x, y),
        )

    return run.loop(run.compiled(step), model, optimizer)


@shape(loop=[0])
def while_op(run: Run) -> Any:
    model, optimizer = make()

    def body(number: Any, loss: Any, x: Any, y: Any) -> Any:
        return number + 1, loss + update(model, optimizer, x, y), x, y

    def step(x: Any, y: Any) -> Any:
        return tf.while_loop(lambda number, *_: number < 2, body, (0, 0.0, x, y))[1]

    return run.loop(run.compiled(step), model, optimizer)


@shape(loop=[3])
def map_over_rows(run: Run) -> Any:
    """`tf.map_fn` takes rows one by one: row 3 is iteration 3."""
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            shown = tf.map_fn(lambda row: model(row[tf.newaxis])[0], x)
            loss = tf.reduce_mean(tf.square(shown - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return run.loop(run.compiled(step), model, optimizer)
