"""Several things that train in one program: adversaries, phases, optimizers that take turns."""

from __future__ import annotations

import threading
from typing import Any

import tensorflow as tf

from loop_shapes.base import BAD_BATCH, ROWS, Run, error, make, shape, update

NOISE = [5, 6]


@shape(step=2 * BAD_BATCH)
def adversaries_wrapped_one_by_one(run: Run) -> Any:
    """Two steps a batch, each counted: the first one of batch 5 fails."""
    critic, critic_optimizer = make("critic")
    maker, maker_optimizer = make("maker", seed=8)
    criticise = run.compiled(lambda x, y: update(critic, critic_optimizer, x, y))

    def improve(noise: Any) -> Any:
        with tf.GradientTape() as tape:
            made = tf.concat([maker(noise), noise[:, 1:]], axis=1)
            loss = -tf.reduce_mean(critic(made))
        gradients = tape.gradient(loss, maker.trainable_variables)
        maker_optimizer.apply_gradients(zip(gradients, maker.trainable_variables, strict=True))
        return loss

    criticise = run.wrap(criticise, model=critic, optimizer=critic_optimizer)
    improve = run.wrap(run.compiled(improve), model=maker, optimizer=maker_optimizer)
    noise = tf.random.stateless_normal([ROWS, 4], NOISE)
    for x, y in run.batches():
        criticise(x, y)
        if run.stopped():
            break
        improve(noise)
    return [critic, critic_optimizer, maker, maker_optimizer]


@shape(step=2 * BAD_BATCH, eager_step=BAD_BATCH)
def adversaries_in_one_plain_function(run: Run) -> Any:
    """The function around both is wrapped; what is compiled in it and trains counts as a step."""
    critic, critic_optimizer = make("critic")
    maker, maker_optimizer = make("maker", seed=8)
    criticise = run.compiled(lambda x, y: update(critic, critic_optimizer, x, y))
    improve = run.compiled(lambda x, y: update(maker, maker_optimizer, x, y))
    noise = tf.random.stateless_normal([ROWS, 4], NOISE)

    def step(x: Any, y: Any) -> Any:
        return criticise(x, y), improve(noise, -y)

    step = run.wrap(step, model=critic, optimizer=critic_optimizer)
    for x, y in run.batches():
        step(x, y)
    return [critic, critic_optimizer, maker, maker_optimizer]


@shape()
def adversaries_in_one_compiled_function(run: Run) -> Any:
    critic, critic_optimizer = make("critic")
    maker, maker_optimizer = make("maker", seed=8)
    noise = tf.random.stateless_normal([ROWS, 4], NOISE)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as of_critic, tf.GradientTape() as of_maker:
            made = tf.concat([maker(noise), noise[:, 1:]], axis=1)
            judged = critic(made)
            critic_loss = error(critic, x, y) + tf.reduce_mean(judged)
            maker_loss = -tf.reduce_mean(judged)
        for_critic = of_critic.gradient(critic_loss, critic.trainable_variables)
        for_maker = of_maker.gradient(maker_loss, maker.trainable_variables)
        critic_optimizer.apply(for_critic, critic.trainable_variables)
        maker_optimizer.apply(for_maker, maker.trainable_variables)
        return critic_loss, maker_loss

    step = run.wrap(run.compiled(step), model=critic, optimizer=critic_optimizer)
    for x, y in run.batches():
        step(x, y)
    return [critic, critic_optimizer, maker, maker_optimizer]


@shape(step=2 * BAD_BATCH + 1)
def actor_and_critic(run: Run) -> Any:
    """The second step of a batch fails: the critic is fine, the actor's own layer is not."""
    actor, actor_optimizer = make("actor")
    critic, critic_optimizer = make("critic", seed=8)

    def judge(values: Any, rewards: Any) -> Any:
        return update(critic, critic_optimizer, values, rewards)

    def act(states: Any) -> Any:
        with tf.GradientTape() as tape:
            actions = actor(states)
            loss = -tf.reduce_mean(actions) + tf.reduce_mean(tf.square(actions))
        gradients = tape.gradient(loss, actor.trainable_variables)
        actor_optimizer.apply_gradients(zip(gradients, actor.trainable_variables, strict=True))
        return loss

    judge = run.wrap(run.compiled(judge), model=critic, optimizer=critic_optimizer)
    act = run.wrap(run.compiled(act), model=actor, optimizer=actor_optimizer)
    for states, rewards in run.batches():
        judge(states * tf.range(1.0, 5.0), rewards)
        if run.stopped():
            break
        act(states)
    return [actor, actor_optimizer, critic, critic_optimizer]


@shape()
def optimizers_that_take_turns(run: Run) -> Any:
    """One model; even batches go to one compiled step, odd ones to another."""
    model, first = make()
    second = type(first)(0.002)
    second.build(model.trainable_variables)
    steps = [
        run.wrap(
            run.compiled(lambda x, y, optimizer=optimizer: update(model, optimizer, x, y)),
            model=model,
            optimizer=optimizer,
        )
        for optimizer in (first, second)
    ]
    for number, (x, y) in enumerate(run.batches()):
        steps[number % 2](x, y)
    return [model, first, second]


@shape()
def two_phases(run: Run) -> Any:
    """Four batches with all weights, then four with the last layer alone, by another function."""
    model, optimizer = make()
    last = model.layers[-1].trainable_variables
    fine = type(optimizer)(0.001)
    fine.build(last)

    def tune(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = error(model, x, y)
        fine.apply_gradients(zip(tape.gradient(loss, last), last, strict=True))
        return loss

    train = run.compiled(lambda x, y: update(model, optimizer, x, y))
    train = run.wrap(train, model=model, optimizer=optimizer)
    tune = run.wrap(run.compiled(tune), model=model, optimizer=fine)
    for number, (x, y) in enumerate(run.batches()):
        (train if number < 4 else tune)(x, y)
    return [model, optimizer, fine]


def compiled_by_keras(run: Run, model: Any, optimizer: Any, **options: Any) -> Any:
    """A model for `train_on_batch` as the column has it."""
    how = {"eager": {"run_eagerly": True}, "graph": {"jit_compile": False}}
    how["xla"] = {"jit_compile": True}
    model.compile(optimizer, "mse", **how[run.column], **options)
    return model


@shape()
def train_on_batch(run: Run) -> Any:
    model, optimizer = make()
    compiled_by_keras(run, model, optimizer, metrics=["mae"])
    step = run.wrap(model.train_on_batch, model=model, optimizer=optimizer)
    for x, y in run.arrays():
        step(x, y)
    return [model, optimizer]


@shape()
def train_on_batch_with_weights(run: Run) -> Any:
    model, optimizer = make()
    compiled_by_keras(run, model, optimizer)
    step = run.wrap(model.train_on_batch, model=model, optimizer=optimizer)
    for x, y in run.arrays():
        step(x, y, sample_weight=abs(y[:, 0]) + 0.5, return_dict=True)
    return [model, optimizer]


@shape(step=2 * BAD_BATCH)
def train_on_batch_of_two_models(run: Run) -> Any:
    """Both wrapped; two steps a batch."""
    critic, critic_optimizer = make("critic")
    maker, maker_optimizer = make("maker", seed=8)
    compiled_by_keras(run, critic, critic_optimizer)
    compiled_by_keras(run, maker, maker_optimizer)
    criticise = run.wrap(critic.train_on_batch, model=critic, optimizer=critic_optimizer)
    improve = run.wrap(maker.train_on_batch, model=maker, optimizer=maker_optimizer)
    for x, y in run.arrays():
        criticise(x, y)
        if run.stopped():
            break
        improve(x[:, ::-1] + [0, 1, 2, 3], -y)
    return [critic, critic_optimizer, maker, maker_optimizer]


@shape(step=2 * BAD_BATCH, eager_step=BAD_BATCH)
def train_on_batch_of_two_models_in_one_function(run: Run) -> Any:
    critic, critic_optimizer = make("critic")
    maker, maker_optimizer = make("maker", seed=8)
    compiled_by_keras(run, critic, critic_optimizer)
    compiled_by_keras(run, maker, maker_optimizer)

    def step(x: Any, y: Any) -> Any:
        one = critic.train_on_batch(x, y)
        other = maker.train_on_batch(x[:, ::-1] + [0, 1, 2, 3], -y)
        return {"critic": float(one), "maker": float(other)}

    step = run.wrap(step, model=critic, optimizer=critic_optimizer)
    for x, y in run.arrays():
        step(x, y)
    return [critic, critic_optimizer, maker, maker_optimizer]


@shape(files=("first", "second"))
def two_threads(run: Run) -> Any:
    """Each thread trains a model of its own, with a recorder of its own."""
    stems = ("first", "second")
    parts = [make(stem, seed) for seed, stem in enumerate(stems)]
    problems: list[BaseException] = []

    def train(stem: str, model: Any, optimizer: Any) -> None:
        try:
            step = run.compiled(lambda x, y: update(model, optimizer, x, y))
            step = run.wrap(step, stem, model=model, optimizer=optimizer)
            for x, y in run.batches(stem):
                step(x, y)
        except BaseException as problem:
            problems.append(problem)

    named = zip(stems, parts, strict=True)
    threads = [threading.Thread(target=train, args=(stem, *part)) for stem, part in named]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return [thing for part in parts for thing in part]
