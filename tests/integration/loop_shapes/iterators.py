"""Steps that fetch their batch themselves."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from loop_shapes.base import ANYTHING, BATCHES, Run, make, shape, update

FETCHES = "XLA cannot compile what fetches from an iterator"


def unlabelled() -> Any:
    """An iterator of samples without labels."""
    return iter(tf.data.Dataset.from_tensors(tf.random.stateless_normal([8, 4], [1, 2])).repeat())


@shape(xla=FETCHES)
def iterator_argument(run: Run) -> Any:
    model, optimizer = make()

    def step(iterator: Any) -> Any:
        x, y = next(iterator)
        return update(model, optimizer, x, y)

    return run.fetching_loop(run.compiled(step), model, optimizer, iter(run.dataset()))


@shape(xla=FETCHES, step=2, unproved=True)
def several_batches_in_one_step(run: Run) -> Any:
    """Batches 4 and 5 are those of step 2."""
    model, optimizer = make()

    def step(iterator: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = 0.0
            for _ in range(2):
                x, y = next(iterator)
                loss += tf.reduce_mean(tf.square(model(x) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return run.fetching_loop(
        run.compiled(step), model, optimizer, iter(run.dataset()), calls=BATCHES // 2
    )


@shape(xla=FETCHES)
def iterator_of_the_closure(run: Run) -> Any:
    model, optimizer = make()
    iterator = iter(run.dataset())

    def step() -> Any:
        x, y = next(iterator)
        return update(model, optimizer, x, y)

    return run.fetching_loop(run.compiled(step), model, optimizer)


@shape(xla=FETCHES)
def two_iterators(run: Run) -> Any:
    """Labelled samples and samples without labels, as in semi-supervised training."""
    model, optimizer = make()

    def step(labelled: Any, others: Any) -> Any:
        x, y = next(labelled)
        extra = next(others)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
            loss += 0.1 * tf.reduce_mean(tf.square(model(extra) - model(-extra)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return run.fetching_loop(
        run.compiled(step),
        model,
        optimizer,
        iter(run.dataset()),
        unlabelled(),
    )


@shape(xla=FETCHES, unproved=True, may_refuse=True)
def batch_that_may_be_missing(run: Run) -> Any:
    """The batch comes as an optional, so that the step itself sees the end of the data."""
    model, optimizer = make()

    def step(iterator: Any) -> Any:
        batch = iterator.get_next_as_optional()
        loss = tf.constant(0.0)
        if batch.has_value():
            x, y = batch.get_value()
            loss = update(model, optimizer, x, y)
        return loss

    return run.fetching_loop(
        run.compiled(step), model, optimizer, iter(run.dataset()), calls=BATCHES + 1
    )


@shape(
    eager="a loop of Python's own is one eager step",
    xla=FETCHES,
    step=1,
    rows=ANYTHING,
    loop=[1],
)
def several_updates_in_a_loop_of_the_graph(run: Run) -> Any:
    """Four updates in one call; batch 5 is that of step 1, iteration 1."""
    model, optimizer = make()

    def steps(iterator: Any) -> Any:
        loss = tf.constant(0.0)
        for _ in tf.range(4):
            x, y = next(iterator)
            loss = update(model, optimizer, x, y)
        return loss

    return run.fetching_loop(
        run.compiled(steps), model, optimizer, iter(run.dataset()), calls=BATCHES // 4
    )


@shape(xla=FETCHES)
def inner_function_that_takes_the_batch_the_other_way_round(run: Run) -> Any:
    model, optimizer = make()
    inner = run.compiled(lambda y, x: update(model, optimizer, x, y))

    def step(iterator: Any) -> Any:
        x, y = next(iterator)
        return inner(y, x)

    return run.fetching_loop(run.compiled(step), model, optimizer, iter(run.dataset()))


@shape(xla=FETCHES)
def inner_function_that_takes_of_two_iterators(run: Run) -> Any:
    model, optimizer = make()

    def penalized(extra: Any, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y)) + 0.1 * tf.reduce_mean(
                tf.square(model(extra))
            )
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    inner = run.compiled(penalized)

    def step(labelled: Any, others: Any) -> Any:
        x, y = next(labelled)
        return inner(next(others), x, y)

    return run.fetching_loop(
        run.compiled(step),
        model,
        optimizer,
        iter(run.dataset()),
        unlabelled(),
    )


@shape()
def plain_function_that_fetches(run: Run) -> Any:
    model, optimizer = make()
    inner = run.compiled(lambda x, y: update(model, optimizer, x, y))

    def step(iterator: Any) -> Any:
        return inner(*next(iterator))

    return run.fetching_loop(step, model, optimizer, iter(run.dataset()))


@shape(
    eager="the whole epoch would be one eager step",
    xla="XLA cannot compile a loop over a dataset",
    may_refuse=True,
    step=ANYTHING,
    unproved=True,
    loop=[5],
)
def epoch_in_one_call(run: Run) -> Any:
    """`for x, y in dataset` in the compiled function, as TensorFlow's guide has it."""
    model, optimizer = make()

    def epoch(dataset: Any) -> Any:
        total = 0.0
        for x, y in dataset:
            total += update(model, optimizer, x, y)
        return total

    epoch = run.wrap(run.compiled(epoch), model=model, optimizer=optimizer)
    for _ in range(2):
        epoch(run.dataset())
        if run.stopped():
            break
    return [model, optimizer]
