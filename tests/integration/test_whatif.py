"""Fixes tried on recordings: what the replay gives is what training with the fix in the code
gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainings import with_all_variables

from nanreplay import Capture, Recorder, Replay
from nanreplay.bisect import bisect
from nanreplay.findings import FixResult
from nanreplay.report.explain import explain
from nanreplay.report.fix_words import fixes_in_words
from nanreplay.whatif import FixError, check_fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fix_names import NAMES
from nanreplay.whatif.fixes import FIXES
from nanreplay.whatif.trial import what_if
from nanreplay.whatif.trial_window import TrialWindow

ROWS, STEPS = 8, 6
pytestmark = [
    pytest.mark.filterwarnings("ignore:nanreplay. step"),  # what `on_nan="stop"` says
    pytest.mark.xdist_group("whatif"),  # one worker makes the capture
]


class Calls(keras.layers.Layer):
    """A layer made of a function."""

    def __init__(self, function: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(**options)
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)


def data() -> tuple[Any, Any]:
    """Positive readings; row 3 of step 4 is all 0."""
    random = np.random.RandomState(1)
    x = random.uniform(0.1, 1.0, (ROWS * STEPS, 3)).astype("float32")
    x[4 * ROWS + 3] = 0.0
    return x, x.sum(axis=1, keepdims=True)


def train(
    path: Path,
    *layers: Any,
    optimizer: Any = None,
    loss: Any = "mse",
    xy: Any = None,
    xla: bool = False,
) -> Path:
    """Record a small training; the file is written at the incident, else on demand in the end."""
    x, y = data() if xy is None else xy
    model = keras.Sequential([keras.Input(x.shape[1:], dtype=x.dtype), *layers])
    model.compile(optimizer or keras.optimizers.SGD(0.05), loss, jit_compile=xla)
    with_all_variables(model)
    recorder = Recorder(path, on_nan="stop")
    model.fit(x, y, batch_size=ROWS, shuffle=False, verbose=0, callbacks=[recorder])
    if not path.exists():
        recorder.dump(reason="the end of a healthy training")
    return path


def dense(**options: Any) -> Any:
    return keras.layers.Dense(1, **options)


def tried(path: Path, *fixes: str) -> list[FixResult]:
    """What `what_if` says of fixes."""
    with Capture(path) as capture, Replay(capture) as replay:
        bisection = bisect(replay, capture.timeline_record())
        return list(what_if(replay, bisection, (), list(fixes)).results)


def losses_with(path: Path, name: str, value: str | None) -> list[float]:
    """Loss of each step of a recording as it is replayed with a fix."""
    with Capture(path) as capture, Replay(capture) as replay:
        failure = Failure(TrialWindow(replay), bisect(replay, capture.timeline_record()), ())
        return [
            float(result.loss or 0.0)
            for result in failure.window.run(FIXES[name](failure, value).edit).results
        ]


def losses_of(path: Path) -> list[float]:
    with Capture(path) as capture:
        return [float(loss) for loss in capture.timeline()["loss"]]


def log_layer(eps: float = 0.0, *, double: bool = False) -> Any:
    def call(x: Any) -> Any:
        return tf.math.log((tf.where(x > 0, x, 1.0) if double else x) + eps)

    return Calls(call, name="logs")


def quotient(eps: float = 0.0, *, no_nan: bool = False) -> Any:
    def call(x: Any) -> Any:
        total = tf.reduce_sum(x, axis=1, keepdims=True)
        return tf.math.divide_no_nan(x, total) if no_nan else x / (total + eps)

    return Calls(call, name="shares")


def looped(eps: float = 0.0) -> Any:
    def call(x: Any) -> Any:
        def body(i: Any, total: Any) -> Any:
            return i + 1, total + 0.01 * tf.math.log(x[:, i] * tf.cast(i + 1, tf.float32) + eps)

        return tf.while_loop(
            lambda i, total: i < 3, body, (tf.constant(0), tf.zeros_like(x[:, 0]))
        )[1][:, None]

    return Calls(call, name="looped")


def cross_entropy(kind: str = "plain") -> Callable[[Any, Any], Any]:
    def loss(labels: Any, logits: Any) -> Any:
        if kind == "stable":
            return -tf.reduce_sum(labels * tf.nn.log_softmax(logits), axis=-1)
        return -tf.reduce_sum(labels * tf.math.log(tf.nn.softmax(logits)), axis=-1)

    return loss


def far_out() -> tuple[Any, Any]:
    """Two classes; row 2 of step 3 is far from all others, and of the wrong class."""
    random = np.random.RandomState(2)
    x = random.normal(size=(ROWS * STEPS, 3)).astype("float32")
    y = np.eye(2, dtype="float32")[(x[:, 0] > 0).astype(int)]
    x[3 * ROWS + 2] *= 1e4
    return x, y[:, ::-1].copy()


def sqrt_data() -> tuple[Any, Any]:
    x, y = data()
    return x, y


def square_root(eps: float = 0.0) -> Any:
    return Calls(
        lambda x: tf.sqrt(tf.reduce_sum(tf.square(x), axis=1, keepdims=True) + eps), name="length"
    )


def share_of_input(*, double: bool = False) -> Any:
    def call(x: Any) -> Any:
        total = tf.stop_gradient(tf.reduce_sum(x, axis=1, keepdims=True))
        return x / (tf.where(total != 0, total, 1.0) if double else total)

    return Calls(call, name="shares")


def ones() -> Any:
    return keras.layers.Dense(3, kernel_initializer="ones", use_bias=False)


def steep(high: float | None = None) -> Any:
    def call(x: Any) -> Any:
        return 0.01 * x + 1e-34 * tf.exp(x if high is None else tf.minimum(x, high))

    return Calls(call, name="steep")


def with_a_steep_row() -> tuple[Any, Any]:
    x, y = data()
    x[2 * ROWS + 1], y[2 * ROWS + 1] = 27.5, 1.0  # above the bound, and finite without it
    return x, y


def decaying(rate: float) -> Any:
    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(rate, 2, 0.5))


def sgd(**options: Any) -> Any:
    return keras.optimizers.SGD(0.05, **options)


def adam(**options: Any) -> Any:
    return keras.optimizers.Adam(**{"learning_rate": 0.05, **options})


def relu_pair(slope: float | None = None) -> list[Any]:
    activation = (
        keras.layers.ReLU() if slope is None else keras.layers.LeakyReLU(negative_slope=slope)
    )
    return [keras.layers.Dense(6), activation, log_layer(1.0), dense()]


def clipped(high: float) -> tuple[Any, Any]:
    x, y = data()
    return np.clip(x, -high, high), y


# Each: the fix, the training that fails or not, the same training with the fix written into its
# code.
Trained = Callable[[Path], Path]
SAME: dict[str, tuple[str, Trained, Trained]] = {
    "epsilon in a logarithm": ("epsilon=0.001", lambda p: train(p, log_layer(), dense()),
    lambda p: train(p, log_layer(1e-3), dense())),
    "epsilon in a logarithm, XLA": (
        "epsilon=0.001",
        lambda p: train(p, log_layer(), dense(), xla=True),
        lambda p: train(p, log_layer(1e-3), dense(), xla=True),
    ),
    "epsilon in a quotient whose divisor is trained": (
        "epsilon=0.001",
        lambda p: train(p, keras.layers.Dense(3, use_bias=False), quotient(), dense()),
        lambda p: train(p, keras.layers.Dense(3, use_bias=False), quotient(1e-3), dense()),
    ),
    "epsilon under a root whose gradient fails": (
        "epsilon=0.001",
        lambda p: train(p, keras.layers.Dense(3, use_bias=False), square_root(), dense()),
        lambda p: train(p, keras.layers.Dense(3, use_bias=False), square_root(1e-3), dense()),
    ),
    "epsilon in a loop, and in its backward loop": (
        "epsilon=0.001",
        lambda p: train(p, keras.layers.Dense(3, use_bias=False, kernel_initializer="ones"),
        looped(), dense()),
        lambda p: train(p, keras.layers.Dense(3, use_bias=False, kernel_initializer="ones"),
        looped(1e-3), dense()),
    ),
    "a quotient that is 0": (
        "stable_op",
        lambda p: train(p, keras.layers.Dense(3, use_bias=False), quotient(), dense()),
        lambda p: train(p, keras.layers.Dense(3, use_bias=False), quotient(no_nan=True), dense()),
    ),
    "double where of a divisor that is not trained": (
        "double_where",
        lambda p: train(p, ones(), share_of_input(), dense()),
        lambda p: train(p, ones(), share_of_input(double=True), dense()),
    ),
    "log-softmax": (
        "stable_op",
        lambda p: train(p, keras.layers.Dense(2), loss=cross_entropy(), xy=far_out()),
        lambda p: train(p, keras.layers.Dense(2), loss=cross_entropy("stable"), xy=far_out()),
    ),
    "a bound, behind which nothing is learned": (
        "stable_op",
        lambda p: train(p, ones(), steep(), dense(), xy=with_a_steep_row()),
        lambda p: train(p, ones(), steep(80.0), dense(), xy=with_a_steep_row()),
    ),
    "double where": ("double_where", lambda p: train(p, log_layer(), dense()), lambda p: train(p,
    log_layer(double=True), dense())),
    "learning rate": (
        "lr=0.1",
        lambda p: train(p, log_layer(1.0), dense()),
        lambda p: train(p, log_layer(1.0), dense(), optimizer=keras.optimizers.SGD(0.005)),
    ),
    "learning rate of a schedule": (
        "lr=0.5",
        lambda p: train(p, log_layer(1.0), dense(), optimizer=decaying(0.1)),
        lambda p: train(p, log_layer(1.0), dense(), optimizer=decaying(0.05)),
    ),
    "clipnorm": (
        "clipnorm=0.1",
        lambda p: train(p, log_layer(1.0), dense(), optimizer=sgd()),
        lambda p: train(p, log_layer(1.0), dense(), optimizer=sgd(clipnorm=0.1)),
    ),
    "clipvalue": (
        "clipvalue=0.05",
        lambda p: train(p, log_layer(1.0), dense(), optimizer=adam()),
        lambda p: train(p, log_layer(1.0), dense(), optimizer=adam(clipvalue=0.05)),
    ),
    "global clipnorm": (
        "global_clipnorm=0.1",
        lambda p: train(p, log_layer(1.0), dense(), optimizer=sgd()),
        lambda p: train(p, log_layer(1.0), dense(), optimizer=sgd(global_clipnorm=0.1)),
    ),
    "clipnorm of scaled gradients": (
        "clipnorm=0.1",
        lambda p: train(p, log_layer(1.0), dense(),
        optimizer=keras.optimizers.LossScaleOptimizer(sgd(), initial_scale=64.0)),
        lambda p: train(p, log_layer(1.0), dense(),
        optimizer=keras.optimizers.LossScaleOptimizer(sgd(clipnorm=0.1), initial_scale=64.0)),
    ),
    "leaky relu": ("leaky_relu=0.3", lambda p: train(p, *relu_pair()), lambda p: train(p,
    *relu_pair(0.3))),
    "float32": (
        "float32",
        lambda p: train(p, keras.layers.Dense(4, activation="tanh", dtype="mixed_float16"),
        dense(dtype="mixed_float16")),
        lambda p: train(p, keras.layers.Dense(4, activation="tanh"), dense()),
    ),
    "clipped data": (
        "clip_data=0.5",
        lambda p: train(p, log_layer(1.0), dense(), xy=(data()[0], np.zeros((ROWS * STEPS, 1),
        "float32"))),
        lambda p: train(p, log_layer(1.0), dense(), xy=(clipped(0.5)[0], np.zeros((ROWS * STEPS,
        1), "float32"))),
    ),
}  # fmt: skip
SLOW = (
    "epsilon in a logarithm, XLA",
    "epsilon in a quotient whose divisor is trained",
    "learning rate",
    "clipvalue",
    "global clipnorm",
    "clipnorm of scaled gradients",
    "float32",
    "clipped data",
    "log-softmax",
    "a quotient that is 0",
)
"""Edits of which another case has the like."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SAME]
)
def test_a_replayed_fix_gives_the_losses_of_training_with_that_fix(
    name: str, tmp_path: Path
) -> None:
    fix, without, with_ = SAME[name]
    keras.utils.set_random_seed(5)
    recorded = without(tmp_path / "without.h5")
    keras.utils.set_random_seed(5)
    fixed = with_(tmp_path / "with.h5")

    replayed, trained = losses_with(recorded, *check_fix(fix)), losses_of(fixed)

    assert np.isfinite(trained).all()
    assert len(replayed) >= 4
    np.testing.assert_allclose(replayed, trained[: len(replayed)], rtol=2e-5)


@pytest.fixture(scope="module")
def log_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("whatif") / "run.h5", log_layer(), dense())


def test_what_helps_is_told_from_what_does_not(log_run: Path) -> None:
    helps, clips, slower, combined = tried(log_run, "epsilon", "clipnorm=1.0", "lr=0.1")

    assert (helps.prevents, helps.steps_checked, helps.nonfinite) == (True, (0, 4), None)
    assert (clips.prevents, clips.nonfinite_step) == (False, 4)
    assert clips.code == "keras.optimizers.SGD(..., clipnorm=1)"
    assert slower.prevents is False
    assert (combined.name, combined.prevents) == ("epsilon+clipnorm+lr", True)


def test_a_fix_says_how_to_write_it_and_where(log_run: Path) -> None:
    (helps,) = tried(log_run, "epsilon=1e-5")
    assert (
        helps.code == "return tf.math.log((tf.where(x > 0, x, 1.0) if double else x) + eps + 1e-5)"
    )
    assert helps.source is not None
    assert Path(helps.source.file).name == "test_whatif.py"


def test_an_epsilon_below_a_fraction_is_large_enough_for_a_loss_near_the_usual() -> None:
    run = Path(__file__).resolve().parents[2] / "sample_runs" / "division_by_zero.h5"
    found, small, _ = explain(run, fixes=["epsilon", "epsilon=1e-3"]).fixes

    assert (found.params["value"], found.prevents, found.loss_rise) == (0.01, True, None)
    assert small.prevents
    assert small.loss_rise is not None
    assert 10 < small.loss_rise < 1000
    assert "The loss of step 17 is 32.4 with it, usually at most" in str(small.note)
    assert "`epsilon=0.01` and `epsilon=0.001`" in fixes_in_words([small, found])


def test_the_loss_of_an_outlier_is_its_batchs_and_hides_no_later_one(tmp_path: Path) -> None:
    x, _ = data()
    y = x.sum(axis=1, keepdims=True)
    x[4 * ROWS + 3], y[2 * ROWS + 1] = 0.5, 1e12  # its gradient throws three layers off
    layers = [dense() for _ in range(3)]
    run = train(tmp_path / "run.h5", *layers, optimizer=keras.optimizers.SGD(1e-3), xy=(x, y))

    (clipped,) = tried(run, "clipnorm=1.0")
    assert (clipped.prevents, clipped.note) == (True, None)
    assert clipped.final_loss is not None
    assert 0.01 < clipped.final_loss < 10  # beside 1e23 in a mean of losses it would be 0


@pytest.mark.parametrize(
    "clipping",
    [
        "clipnorm",
        pytest.param("clipvalue", marks=pytest.mark.slow),
        pytest.param("global_clipnorm", marks=pytest.mark.slow),
    ],
)
def test_another_clipping_stands_in_the_place_of_that_which_the_optimizer_does(
    clipping: str, tmp_path: Path
) -> None:
    keras.utils.set_random_seed(1)
    x, y = data()
    x[2 * ROWS, 0] = np.nan
    layers = [keras.Input((x.shape[1],)), dense()]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.01, **{clipping: 1.0}), "mse", jit_compile=False)
    recorder = Recorder(tmp_path / "run.h5", on_nan="stop")
    model.fit(x, y, batch_size=ROWS, shuffle=False, verbose=0, callbacks=[recorder])
    (fix,) = tried(tmp_path / "run.h5", "clipnorm")
    assert str(fix.code).endswith("# in place of the clipping that it does: Keras takes one")


def test_an_edit_that_makes_another_line_of_a_line_is_no_verified_fix(log_run: Path) -> None:
    (large,) = tried(log_run, "epsilon=3")
    assert (large.prevents, large.outcome) == (False, "unhealthy")
    assert "the line computes something else" in str(large.note)


def test_prevents_is_what_the_replay_gave_and_turns_false_when_the_edit_is_taken_out(
    log_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failure, "operand_edit", lambda *_, **__: lambda editor: None)
    monkeypatch.setattr(Failure, "value_edit", lambda *_, **__: lambda editor: None)
    (broken,) = tried(log_run, "epsilon")
    assert (broken.prevents, broken.nonfinite_step) == (False, 4)


def test_a_replay_that_stops_short_of_the_failing_step_is_no_proof(
    log_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanreplay.whatif.window_run.Program", _Raises)
    (result,) = tried(log_run, "epsilon")
    assert result.prevents is None
    assert "step 2" in str(result.note)


class _Raises:
    """A program that cannot run the third step."""

    def __init__(self, record: Any, *, trust: bool) -> None:
        from nanreplay.replay.replay_programs import Program

        self._program, self._count = Program(record, trust=trust), 0
        self.signature = self._program.signature
        self.step_loss = self.mean_variables = None

    def step(self, *arguments: Any) -> Any:
        from nanreplay.errors import ReplayError

        self._count += 1
        if self._count > 2:
            raise ReplayError("step 2 raised")
        return self._program.step(*arguments)


def test_the_report_tries_what_fits_and_names_it(log_run: Path) -> None:
    report = explain(log_run)
    assert report.causes[0].kind == "log_of_zero"
    assert [fix.name for fix in report.fixes if fix.prevents][:1] == ["epsilon"]
    assert [fix.name for fix in report.fixes if fix.prevents is False] == ["clipnorm", "lr"]
    assert "Verified fix" in report.sentence
    assert "`clipnorm=1` and `lr x 0.1 (0.005)` do not help" in report.sentence


def test_no_fix_is_tried_when_none_is_wanted(log_run: Path) -> None:
    assert explain(log_run, fixes="none").fixes == ()


def test_initial_weights_are_drawn_anew(tmp_path: Path) -> None:
    huge = keras.initializers.RandomNormal(stddev=1e20, seed=1)
    run = train(
        tmp_path / "run.h5",
        keras.layers.Dense(4, kernel_initializer=huge),
        dense(kernel_initializer=huge),
    )
    glorot, he, clips = tried(run, "init=glorot", "init=he", "clipnorm=1.0")[:3]
    assert (glorot.prevents, he.prevents, clips.prevents) == (True, True, False)
    for path in ("dense/kernel", "dense_1/kernel"):
        assert path in str(glorot.code)
    assert str(glorot.code).startswith('kernel_initializer="glorot_uniform"  # of `')


def test_a_recurrent_kernel_has_an_initializer_of_its_own(tmp_path: Path) -> None:
    huge = keras.initializers.RandomNormal(stddev=1e20, seed=1)
    layers = (keras.layers.Reshape((3, 1)), keras.layers.SimpleRNN(2, recurrent_initializer=huge))
    run = train(tmp_path / "run.h5", *layers, dense())
    (fix,) = tried(run, "init=glorot")
    assert fix.prevents is True
    path = "simple_rnn/simple_rnn_cell/recurrent_kernel"
    assert str(fix.code).startswith('recurrent_initializer="orthogonal"  # of `')
    assert path in str(fix.code)
    assert len(fix.edits) == 1


def test_a_skipped_step_leaves_the_weights_finite(tmp_path: Path) -> None:
    x, y = data()
    x[2 * ROWS, 0] = np.nan
    run = train(tmp_path / "run.h5", log_layer(1.0), dense(), xy=(x, y))
    skip, clean, drop = tried(run, "skip_step", "clean_data=nan_to_num", "clean_data=drop_rows")[:3]
    assert (skip.prevents, clean.prevents, drop.prevents) == (False, True, True)
    assert skip.outcome == "skips"
    assert "is_finite(one)" in str(skip.code)
    assert "for one in (loss, *gradients)" in str(skip.code)
    assert "update of step 2 is left out" in str(skip.note)


def test_weights_are_not_ruined_where_a_later_step_fails_without_them(tmp_path: Path) -> None:
    """Row 3 of step 2 is bad; what the fifth step divides by is 0, whatever the weights are."""
    weights, count = tf.Variable(tf.ones([3, 1])), tf.Variable(0, dtype=tf.int64)

    @tf.function
    def step(x: Any) -> Any:
        left = tf.cast(4 - count, tf.float32)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.math.log(x) @ weights)) * (left / left)
        weights.assign_sub(0.01 * tape.gradient(loss, weights))
        count.assign_add(1)
        return loss

    with Recorder(tmp_path / "run.h5", on_nan="stop") as recorder:
        recorded = recorder.wrap(step)
        for number in range(3):
            x = np.full((ROWS, 3), 0.5, "float32")
            x[3] = 0.5 if number < 2 else -1.0
            recorded(tf.constant(x))
    dropped = tried(tmp_path / "run.h5", "clean_data=drop_rows")[0]
    assert dropped.prevents
    assert "that is another fault" in str(dropped.note)


def test_softmax_of_a_row_that_is_masked_out_whole_takes_a_finite_mask(tmp_path: Path) -> None:
    def attend(x: Any) -> Any:
        return tf.nn.softmax(tf.where(x > 0, x, -np.inf)) * x

    run = train(tmp_path / "run.h5", Calls(attend, name="attend"), dense())
    finite, clips = tried(run, "finite_mask", "clipnorm=1.0")[:2]
    assert (finite.prevents, clips.prevents) == (True, False)


def test_an_eager_loop_is_replayed_from_an_earlier_keyframe(tmp_path: Path) -> None:
    keras.utils.set_random_seed(2)
    model, optimizer = keras.Sequential([keras.Input((3,)), dense()]), keras.optimizers.SGD(0.5)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        optimizer.apply_gradients(
            zip(
                tape.gradient(loss, model.trainable_variables),
                model.trainable_variables,
                strict=True,
            )
        )
        return loss

    recorder = Recorder(tmp_path / "run.h5", on_nan="stop")
    recorded, random = (
        recorder.wrap(step, model=model, optimizer=optimizer),
        np.random.default_rng(0),
    )
    while not recorder.stopped:
        x = random.uniform(0, 3, (ROWS, 3)).astype("float32")
        recorded(tf.constant(x), tf.constant(x.sum(axis=1, keepdims=True)))
    lower, clips = tried(tmp_path / "run.h5", "lr=0.1", "clipnorm=1.0")[:2]

    assert (lower.prevents, clips.prevents) == (True, True)
    assert lower.steps_checked is not None
    assert lower.steps_checked[0] < lower.steps_checked[1]
    assert lower.code == "keras.optimizers.SGD(learning_rate=0.05)  # was 0.5"


def test_fixes_that_do_not_apply_say_why(log_run: Path) -> None:
    names = ("float32", "leaky_relu", "finite_mask", "init")
    found = {fix.name: fix for fix in tried(log_run, *names)}
    assert all(fix.prevents is None and fix.note for fix in found.values())
    assert "No kernel is drawn wider than `glorot_uniform` draws it" in str(found["init"].note)
    assert found["float32"].note == "The step computes nothing in 16 bits."


class Word(str):
    """A word that equals another one; a number equals what it may be on another processor, too."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        if super().__eq__(other):
            return True
        try:
            return float(self) == pytest.approx(float(str(other)), rel=1e-3, abs=1e-5)
        except ValueError:
            return False


def test_the_readme_shows_what_whatif_prints(command: Callable[..., Any]) -> None:
    lines = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(
        i for i, line in enumerate(lines) if line.startswith("$ nanreplay whatif sample_runs")
    )
    shown = lines[start + 1 : lines.index("```", start)]
    sample, *fixes = lines[start].removeprefix("$ nanreplay whatif ").split()
    printed = command("whatif", Path(__file__).parents[2] / sample, *fixes).stdout.splitlines()
    words = [list(map(Word, line.split())) for line in printed[-len(shown) :]]
    assert [line.split() for line in shown] == words


@pytest.mark.parametrize("text", ["warp", "", "=1", "clipnorm1"])
def test_a_fix_that_does_not_exist_says_which_there_are(text: str) -> None:
    with pytest.raises(FixError, match="There are: lr, clipnorm"):
        check_fix(text)


@pytest.mark.parametrize(
    "text", ["clipnorm=-1", "lr=nan", "epsilon=small", "init=random", "clean_data=wash"]
)
def test_a_value_that_a_fix_does_not_take_is_an_error(text: str, log_run: Path) -> None:
    with pytest.raises(FixError):
        tried(log_run, text)


def test_every_name_has_a_fix() -> None:
    assert tuple(FIXES) == NAMES


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    keras.utils.set_random_seed(5)
    yield
    keras.backend.clear_session(free_memory=False)
