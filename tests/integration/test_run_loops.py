"""Loops that train in Python, under `nanreplay run`: each iteration is a step, without a line
changed."""

from __future__ import annotations

import gc
import textwrap
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from nanreplay import NonFiniteError, Recorder, explain
from nanreplay.program import listening, observe
from nanreplay.recorder.ambient import Ambient
from nanreplay.recorder.loops import Loops

MODEL = """
import keras
import keras
import numpy as np
import tensorflow as tf

class Standardize(keras.layers.Layer):
    def call(self, x):
        return (x - tf.reduce_mean(x, -1, keepdims=True)) / tf.math.reduce_std(x, -1, keepdims=True)

keras.utils.set_random_seed(7)
model = keras.Sequential([
    keras.layers.Input((4,)), Standardize(name="standardize"), keras.layers.Dense(4,
    name="hidden"), keras.layers.Dense(1),
])
optimizer = keras.optimizers.Adam(1e-2)
rng = np.random.default_rng(3)
xs, ys = rng.normal(size=(6, 8, 4)).astype("float32"), rng.normal(size=(6, 8, 1)).astype("float32")
if FAILS:
    xs[3, 5] = 2.0
batches = list(zip(xs, ys))
dataset = tf.data.Dataset.from_tensor_slices((xs, ys))

def mse(x, y):
    return tf.reduce_mean(tf.square(model(x) - y))
"""

LOOPS = {
    "inline": """
        for epoch in range(2):
            for x, y in dataset:
                with tf.GradientTape() as tape:
                    loss = mse(x, y)
                gradients = tape.gradient(loss, model.trainable_variables)
                optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    """,
    "function": """
        def train_step(batch):
            x, y = batch
            with tf.GradientTape() as tape:
                loss = mse(x, y)
            optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables),
            model.trainable_variables))
            return loss

        def main():
            data = iter(batches)
            for step in range(6):
                loss = train_step(next(data))
                if step == 5:
                    return loss

        main()
    """,
    "private_method": """
        class Trainer:
            def __init__(self):
                self.__optimizer = optimizer

            def fit(self):
                for x, y in batches:
                    with tf.GradientTape() as tape:
                        loss = mse(x, y)
                    gradients = tape.gradient(loss, model.trainable_variables)
                    self.__optimizer.apply_gradients(zip(gradients, model.trainable_variables))

        Trainer().fit()
    """,
    "while_and_hand_written_update": """
        def gradients_of(x, y):
            with tf.GradientTape() as tape:
                loss = mse(x, y)
            return tape.gradient(loss, model.trainable_variables)

        iterator = iter(dataset)
        while True:
            try:
                x, y = next(iterator)
            except StopIteration:
                break
            for variable, gradient in zip(model.trainable_variables, gradients_of(x, y)):
                variable.assign_sub(0.01 * gradient)
    """,
    "next_in_a_method": """
        class Trainer:
            def __init__(self):
                self.data = iter(batches)

            def step(self):
                x, y = next(self.data)
                with tf.GradientTape() as tape:
                    loss = mse(x, y)
                gradients = tape.gradient(loss, model.trainable_variables)
                optimizer.apply_gradients(zip(gradients, model.trainable_variables))

        trainer = Trainer()
        for _ in range(6):
            trainer.step()
    """,
    "compiled_step_in_a_tape": """
        @tf.function
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = mse(x, y)
            optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables),
            model.trainable_variables))
            return loss

        optimizer.build(model.trainable_variables)
        for x, y in batches:
            x = tf.constant(x)
            with tf.GradientTape() as outer:
                outer.watch(x)
                step(x, y)
    """,
    "accumulation": """
        held = None
        for number, (x, y) in enumerate(batches):
            with tf.GradientTape() as tape:
                loss = mse(x, y)
            gradients = tape.gradient(loss, model.trainable_variables)
            held = gradients if held is None else [one + other for one, other in zip(held,
            gradients)]
            if number % 2:
                optimizer.apply_gradients(zip(held, model.trainable_variables))
                held = None
    """,
    "numpy_draws": """
        for x, y in batches:
            x = x + np.float32(0) * np.random.normal(size=x.shape).astype("float32")
            keep = (np.random.uniform(size=(8, 1)) < 2.0).astype("float32")
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(x) - y) * keep)
            optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables),
            model.trainable_variables))
    """,
    "sampled_candidates": """
        table, biases = tf.Variable(tf.ones((20, 4))), tf.zeros(20)
        for x, y in batches:
            with tf.GradientTape() as tape:
                labels = tf.constant([[3]] * 8, tf.int64)
                inputs = tf.repeat(model(x), 4, axis=1)
                loss = tf.reduce_mean(tf.nn.nce_loss(table, biases, labels, inputs, 2, 20))
            optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables),
            model.trainable_variables))
    """,
    "compiled_gradient": """
        @tf.function
        def gradients_of(x, y):
            with tf.GradientTape() as tape:
                loss = mse(x, y)
            return loss, tape.gradient(loss, model.trainable_variables)

        for x, y in batches:
            loss, gradients = gradients_of(x, y)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    """,
    "compiled_gradient_added_up": """
        @tf.function
        def gradients_of(x, y):
            with tf.GradientTape() as tape:
                loss = mse(x, y)
            return loss, tape.gradient(loss, model.trainable_variables)

        for number, (x, y) in enumerate(batches):
            loss, gradients = gradients_of(x, y)
            held = gradients if number % 3 == 0 else [one + other for one, other in zip(held,
            gradients)]
            if number % 3 == 2:
                optimizer.apply_gradients(zip(held, model.trainable_variables))
    """,
    "compiled_update_of_what_was_added_up": """
        model(xs[0])
        held = [tf.Variable(tf.zeros_like(variable), trainable=False) for variable in
        model.trainable_variables]

        @tf.function
        def add(x, y):
            with tf.GradientTape() as tape:
                loss = mse(x, y)
            for one, gradient in zip(held, tape.gradient(loss, model.trainable_variables)):
                one.assign_add(gradient)
            return loss

        @tf.function
        def update():
            optimizer.apply_gradients(zip(held, model.trainable_variables))
            for one in held:
                one.assign(tf.zeros_like(one))

        for number, (x, y) in enumerate(batches):
            add(x, y)
            if number % 2:
                update()
    """,
    "compiled_step": """
        @tf.function
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = mse(x, y)
            optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables),
            model.trainable_variables))
            return loss

        for x, y in batches:
            step(x, y)
    """,
}


def each_loop(*, begin: int) -> pytest.MarkDecorator:
    """Every second loop from one on; the others are slow tests."""
    quick = list(LOOPS)[begin::2]
    return pytest.mark.parametrize(
        "loop",
        [pytest.param(each, marks=[pytest.mark.slow] * (each not in quick)) for each in LOOPS],
    )


def run(loop: str, folder: Path, *, fails: bool, recorded: bool = True) -> dict[str, Any]:
    """Run a program; returns its names."""
    file = folder / "train.py"
    source = f"FAILS = {fails}\n{MODEL}\n{textwrap.dedent(loop)}"
    file.write_text(source)
    names: dict[str, Any] = {"__name__": "__main__"}
    if not recorded:
        exec(compile(source, str(file), "exec"), names)
        return names
    ambient = Ambient(lambda: Recorder(folder / "run.h5"), lambda: loops.trained_eagerly())
    loops = Loops(str(folder), lambda: ambient)
    ambient.start()
    try:
        exec(loops.compile(source.encode(), str(file)), names)
    finally:
        ambient.stop()
    return names


@each_loop(begin=0)
def test_the_failing_iteration_is_found(loop: str, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as raised:
        run(LOOPS[loop], tmp_path, fails=True)
    report = explain(raised.value.path, fixes="none")
    assert report.findings.origin is not None, report.sentence
    assert (report.incident_step, report.findings.origin.op_type) == (3, "RealDiv"), report.sentence
    assert "layer `standardize`" in report.sentence
    assert "Replays bit for bit" in report.sentence
    assert "(sample 5 of the batch)" in report.sentence or loop == "numpy_draws"


@each_loop(begin=1)
def test_a_healthy_loop_trains_the_same_bits_and_leaves_nothing(loop: str, tmp_path: Path) -> None:
    bare = run(LOOPS[loop], tmp_path, fails=False, recorded=False)
    gc.collect()  # recorders of other tests
    before = replaced()

    watched = run(LOOPS[loop], tmp_path, fails=False)

    for one, other in zip(bare["model"].weights, watched["model"].weights, strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.py"]
    assert replaced() == before
    assert listening.is_unheard()


def replaced() -> list[Any]:
    """What recording a loop replaces, as it is now."""
    import builtins

    return [
        tf.GradientTape.gradient,
        keras.layers.Layer.__call__,
        keras.optimizers.Optimizer.apply,
        builtins.next,
        *observe.PATCHED,
    ]


def test_a_loop_that_does_not_look_like_a_training_is_recorded_from_its_second_iteration_on(
    tmp_path: Path,
) -> None:
    hidden = """
        def train_step(x, y):
            with tf.GradientTape() as tape:
                loss = mse(x, y)
            getattr(optimizer, "apply_" + "gradients")(
                zip(getattr(tape, "grad" + "ient")(loss, model.trainable_variables),
                model.trainable_variables)
            )

        for x, y in batches:
            train_step(x, y)
    """
    with pytest.raises(NonFiniteError) as raised:
        run(hidden, tmp_path, fails=True)
    report = explain(raised.value.path, fixes="none")
    assert report.incident_step == 2
    assert "layer `standardize`" in report.sentence


def test_a_loop_whose_next_iteration_never_comes_is_told_of(tmp_path: Path) -> None:
    cells = (
        """
        cell = """
        + repr(textwrap.dedent(LOOPS["inline"]))
        + """
        for code in [cell, "model(xs[0])"]:
            exec(compile(code, "<cell>", "exec"), globals())
    """
    )
    loops = Loops(str(tmp_path), lambda: ambient)
    ambient = Ambient(lambda: Recorder(tmp_path / "run.h5"), loops.trained_eagerly)
    ambient.start()
    source = f"FAILS = False\n{MODEL}\n{textwrap.dedent(cells)}"
    try:
        exec(loops.compile(source.encode(), str(tmp_path / "train.py")), {"__name__": "__main__"})
    finally:
        ambient.stop()
    with pytest.warns(UserWarning, match="trains step by step in Python") as told:
        loops.end()
    assert [one.filename for one in told] == ["<cell>"]  # the text that trains, not what runs it


def test_a_loop_draws_the_same_numbers_again_from_a_generator_of_its_own(tmp_path: Path) -> None:
    drawing = """
        class Data:
            drawn = np.random.default_rng(14)

        own = Data.drawn

        def counts():
            return own.integers(0, 20, size=(8, 1)).astype("float32")

        for x, y in batches:
            with tf.GradientTape() as tape:
                loss = mse(x, y) + tf.reduce_mean(tf.math.log(counts()))
            optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables),
            model.trainable_variables))
    """
    with pytest.raises(NonFiniteError) as raised:
        run(drawing, tmp_path, fails=False)
    report = explain(raised.value.path, fixes="none")
    assert report.findings.origin is not None, report.sentence
    assert (report.incident_step, report.findings.origin.op_type) == (3, "Log"), report.sentence
    assert "Replays bit for bit" in report.sentence


def test_a_state_that_an_iteration_left_is_not_said_to_be_data(tmp_path: Path) -> None:
    carrying = """
        state = tf.zeros((8, 1))
        for step, (x, y) in enumerate(batches):
            with tf.GradientTape() as tape:
                loss = mse(x, y) + tf.reduce_mean(tf.square(state))
            optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables),
            model.trainable_variables))
            state = tf.exp(x[:, :1] * (1000.0 if step == 2 else 0.1))
    """
    with pytest.raises(NonFiniteError) as raised:
        run(carrying, tmp_path, fails=False)
    report = explain(raised.value.path, fixes="none")
    assert (report.incident_step, report.causes[0].kind) == (3, "other"), report.sentence
    assert "held an infinity before the step" in report.sentence
    assert "data, or what an earlier step left" in report.sentence


def test_fixes_of_the_data_name_what_the_loop_names(tmp_path: Path) -> None:
    loop = """
        xs[2, 1, 3] = np.nan
        for x, rest in zip(xs, [{"target": y} for y in ys]):
            with tf.GradientTape() as tape:
                loss = mse(x, rest["target"])
            optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables),
            model.trainable_variables))
    """
    with pytest.raises(NonFiniteError) as raised:
        run(loop, tmp_path, fails=False)
    clean, drop, *_ = explain(raised.value.path).fixes
    assert clean.code == "x = np.nan_to_num(x, posinf=0.0, neginf=0.0)"
    assert drop.code == "# Leave the samples [1] out of the batch of step 2"


def test_loops_of_two_models_are_two_trainings(tmp_path: Path) -> None:
    twice = """
        def train(model, optimizer, batches):
            for x, y in batches:
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(model(x) - y))
                optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables),
                model.trainable_variables))

        other = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1, name="other")])
        train(other, keras.optimizers.SGD(0.01), batches)
        train(model, optimizer, batches)
    """
    with pytest.raises(NonFiniteError) as raised:
        run(twice, tmp_path, fails=True)
    assert explain(raised.value.path, fixes="none").incident_step == 3


def test_a_module_of_the_program_is_recorded_by_run(tmp_path: Path, command: Any) -> None:
    (tmp_path / "work.py").write_text(f"FAILS = True\n{MODEL}\n")
    step = textwrap.dedent(LOOPS["function"]).rpartition("main()")[0]
    (tmp_path / "trainer.py").write_text(f"from work import *\n{step}")
    (tmp_path / "train.py").write_text(
        "import trainer\nprint('begins')\ntrainer.main()\nprint('never')\n"
    )
    done = command("run", "train.py", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == "begins\n"
    assert "NonFiniteError: step 3: loss is NaN" in done.stderr
    assert "layer `standardize`" in explain(tmp_path / "run.h5", fixes="none").sentence


def test_a_training_that_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    generator = """
        def steps():
            for x, y in batches:
                with tf.GradientTape() as tape:
                    loss = mse(x, y)
                for variable, gradient in zip(model.trainable_variables, tape.gradient(loss,
                model.trainable_variables)):
                    variable.assign_sub(0.01 * gradient)
                yield loss

        losses = [float(loss) for loss in steps()]
    """
    with pytest.warns(UserWarning, match="trains step by step in Python, which is not") as told:
        run(generator, tmp_path, fails=True)
    assert Path(told[0].filename) == tmp_path / "train.py"


def test_an_error_of_the_program_in_a_loop_is_its_own_affair(tmp_path: Path) -> None:
    raising = (
        LOOPS["inline"].rstrip()
        + "\n                if float(loss) > -1:"
        + "\n                    raise KeyError('of the program')\n"
    )
    with pytest.raises(KeyError):
        run(raising, tmp_path, fails=False)
    assert not list(tmp_path.glob("*.h5"))


def test_a_gradient_that_a_program_only_looks_at_is_no_training(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    looking = """
        def norms():
            for x, y in batches:
                with tf.GradientTape() as tape:
                    loss = mse(x, y)
                yield [float(tf.norm(each)) for each in tape.gradient(loss,
                model.trainable_variables)]

        print(list(norms()))
    """
    run(looking, tmp_path, fails=False)
    assert not [str(each.message) for each in recwarn if "nanreplay" in str(each.message)]


def test_an_object_that_cannot_be_looked_at_disturbs_nothing(tmp_path: Path) -> None:
    shy = """
        class Shy:
            @property
            def value(self):
                raise RuntimeError("not now")

        shy = Shy()
        for x, y in batches:
            with tf.GradientTape() as tape:
                loss = mse(x, y)
            repr(shy)
            optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables),
            model.trainable_variables))
    """
    with pytest.raises(NonFiniteError, match="step 3"):
        run(shy, tmp_path, fails=True)
