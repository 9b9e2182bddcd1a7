"""Tapes in all their uses, and gradients that go other ways than straight to an optimizer."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from loop_shapes.base import ANYTHING, FEATURES, Run, error, make, shape


@shape()
def persistent_tape(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            loss = error(model, x, y)
            weight_decay = tf.add_n([tf.nn.l2_loss(v) for v in model.trainable_variables])
        of_loss = tape.gradient(loss, model.trainable_variables)
        of_decay = tape.gradient(weight_decay, model.trainable_variables)
        del tape
        gradients = [one + 1e-3 * other for one, other in zip(of_loss, of_decay, strict=True)]
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def gradient_penalty(run: Run) -> Any:
    """A tape in a tape: the gradient by the input is part of the loss."""
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                predictions = model(x)
            by_input = inner.gradient(predictions, x)
            penalty = tf.reduce_mean(tf.square(by_input))
            loss = tf.reduce_mean(tf.square(predictions - y)) + 0.1 * penalty
        gradients = outer.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def jacobian(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                predictions = model(x)
            smoothness = tf.reduce_mean(tf.square(inner.batch_jacobian(predictions, x)))
            loss = tf.reduce_mean(tf.square(predictions - y)) + 0.1 * smoothness
        gradients = outer.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def custom_gradient(run: Run) -> Any:
    model, optimizer = make()

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def reversed_backward(x: Any) -> Any:
        return tf.identity(x), lambda upstream: -0.1 * upstream

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(reversed_backward(model(x)) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def recomputed_gradient(run: Run) -> Any:
    """The forward pass runs once more for the backward pass, to save memory."""
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            predictions = tf.recompute_grad(lambda x: model(x))(x)
            loss = tf.reduce_mean(tf.square(predictions - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def clipped_gradients(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = error(model, x, y)
        gradients = tape.gradient(loss, model.trainable_variables)
        gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def accumulated_gradients(run: Run) -> Any:
    """Each call adds to sums; every fourth applies them. The NaN arises in call 5, not in 7."""
    model, optimizer = make()
    sums = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in model.trainable_variables]
    calls = tf.Variable(0, trainable=False)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = error(model, x, y) / 4.0
        gradients = tape.gradient(loss, model.trainable_variables)
        for total, gradient in zip(sums, gradients, strict=True):
            total.assign_add(gradient)
        calls.assign_add(1)
        if calls % 4 == 0:
            optimizer.apply([total.read_value() for total in sums], model.trainable_variables)
            for total in sums:
                total.assign(tf.zeros_like(total))
        return loss

    return [*run.loop(run.compiled(step), model, optimizer), *sums, calls]


@shape()
def gradients_accumulated_in_python(run: Run) -> Any:
    """The compiled function gives gradients; the loop adds two of them up and updates."""
    model, optimizer = make()

    def gradients(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = error(model, x, y)
        return loss, tape.gradient(loss, model.trainable_variables)

    gradients = run.compiled(gradients)

    def step(x: Any, y: Any) -> Any:
        loss, first = gradients(x[:4], y[:4])
        _, second = gradients(x[4:], y[4:])
        added = [one + other for one, other in zip(first, second, strict=True)]
        optimizer.apply_gradients(zip(added, model.trainable_variables, strict=True))
        return loss

    return run.loop(step, model, optimizer)


@shape()
def compiled_gradient_and_eager_update(run: Run) -> Any:
    model, optimizer = make()

    def gradients(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = error(model, x, y)
        return loss, tape.gradient(loss, model.trainable_variables)

    gradients = run.compiled(gradients)

    def step(x: Any, y: Any) -> Any:
        loss, found = gradients(x, y)
        optimizer.apply_gradients(zip(found, model.trainable_variables, strict=True))
        return loss

    return run.loop(step, model, optimizer)


@shape()
def average_of_the_weights_in_the_step(run: Run) -> Any:
    model, optimizer = make()
    averages = [tf.Variable(v, trainable=False) for v in model.trainable_variables]

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = error(model, x, y)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        for average, weight in zip(averages, model.trainable_variables, strict=True):
            average.assign(0.9 * average + 0.1 * weight)
        return loss

    return [*run.loop(run.compiled(step), model, optimizer), *averages]


@shape()
def average_of_the_weights_between_steps(run: Run) -> Any:
    """The loop swaps the average in now and then, so the weights change between two steps."""
    model, optimizer = make()
    averages = [tf.Variable(v, trainable=False) for v in model.trainable_variables]

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = error(model, x, y)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    step = run.wrap(run.compiled(step), model=model, optimizer=optimizer)
    for number, (x, y) in enumerate(run.batches()):
        step(x, y)
        for average, weight in zip(averages, model.trainable_variables, strict=True):
            average.assign(0.9 * average + 0.1 * weight)
            if number == 3:
                weight.assign(average)
    return [model, optimizer, *averages]


@shape(layer=ANYTHING)
def without_keras(run: Run) -> Any:
    """Variables, an update by hand, no model and no optimizer."""
    kernel = tf.Variable(tf.random.stateless_normal([FEATURES, 1], [1, 2]))
    momentum = tf.Variable(tf.zeros([FEATURES, 1]), trainable=False)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            centred = x - tf.reduce_mean(x, -1, keepdims=True)
            spread = centred / tf.math.reduce_std(x, -1, keepdims=True)
            loss = tf.reduce_mean(tf.square(spread @ kernel - y))
        momentum.assign(0.9 * momentum + tape.gradient(loss, kernel))
        kernel.assign_sub(0.01 * momentum)
        return loss

    step = run.wrap(run.compiled(step))
    for x, y in run.batches():
        step(x, y)
    return [kernel, momentum]
