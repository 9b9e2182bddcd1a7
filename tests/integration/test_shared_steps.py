"""Fixes that leave the first steps of the window as they are: those steps run once for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from nanreplay import Capture, Recorder, Replay
from nanreplay.bisect import bisect
from nanreplay.diagnose import causes_of, judge
from nanreplay.findings import FixResult
from nanreplay.replay.replay_programs import Program
from nanreplay.whatif.edits import Edit
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fix_results import fix_result
from nanreplay.whatif.fixes import FIXES
from nanreplay.whatif.trial import LEAST_TRIED, TriedFixes, what_if
from nanreplay.whatif.trial_window import TrialWindow
from nanreplay.whatif.window_run import LATER_STEPS

ASKED = 1
"""Once for all changed programs: whether the step fails with few graph optimizers, too."""
ROWS, FAILING, MIDDLE = 8, 4, 2
pytestmark = [
    pytest.mark.filterwarnings("ignore:nanreplay. step"),  # what `on_nan="stop"` says
    pytest.mark.xdist_group("shared_steps"),
]


@keras.saving.register_keras_serializable()
class Logarithms(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        return tf.math.log(x)


def batches() -> Iterator[tuple[Any, Any]]:
    """Positive readings; row 3 of the failing step is all 0."""
    random = np.random.RandomState(1)
    for step in range(FAILING + 2):
        x = random.uniform(0.1, 1.0, (ROWS, 3)).astype("float32")
        if step == FAILING:
            x[3] = 0.0
        yield x, x.sum(axis=1, keepdims=True)


def make_model() -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((3,)), Logarithms(), keras.layers.Dense(1)])


@pytest.fixture(scope="module")
def compiled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, model = tmp_path_factory.mktemp("shared") / "run.h5", make_model()
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    x, y = (np.concatenate(arrays) for arrays in zip(*batches(), strict=True))
    recorder = Recorder(path, on_nan="stop")
    model.fit(x, y, batch_size=ROWS, shuffle=False, verbose=0, callbacks=[recorder])
    return path


@pytest.fixture(scope="module")
def eager_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, model = tmp_path_factory.mktemp("shared") / "run.h5", make_model()
    optimizer = keras.optimizers.SGD(0.01)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - tf.constant(np.asarray(y))))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    recorder = Recorder(path, on_nan="stop", keyframe_every=2)
    recorded = recorder.wrap(step, model=model, optimizer=optimizer)
    for x, y in batches():
        recorded(tf.constant(x), tf.constant(y))
        if recorder.stopped:
            break
    return path


class Trials:
    """Fixes tried on one capture, and the steps that each executed."""

    def __init__(self, replay: Replay, count: Callable[[], int]) -> None:
        timeline = replay.capture.timeline_record()
        verdict, bisection = judge(replay), bisect(replay, timeline)
        causes = causes_of(replay, bisection, verdict, timeline)
        self.failure = Failure(TrialWindow(replay), bisection, causes)
        self._count = count

    @property
    def window(self) -> TrialWindow:
        return self.failure.window

    def tried(self, name: str, value: str | None = None) -> tuple[FixResult, int]:
        fix = FIXES[name](self.failure, value)
        before = self._count()
        outcome = self.window.run(fix.edit)
        executed = self._count() - before
        return fix_result(self.failure, fix, outcome), executed

    def steps_of(self, edit: Edit) -> int:
        before = self._count()
        self.window.run(edit)
        return self._count() - before


@pytest.fixture
def open_trials(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[Path], Trials]]:
    executed: list[Any] = []
    run_step = Program.step

    def counted(self: Program, *arguments: Any) -> Any:
        executed.append(self)
        return run_step(self, *arguments)

    monkeypatch.setattr(Program, "step", counted)
    opened: list[Any] = []

    def open_run(path: Path) -> Trials:
        capture = Capture(path)
        replay = Replay(capture)
        opened.extend([replay, capture])
        return Trials(replay, lambda: len(executed))

    yield open_run
    for one in opened:
        one.close()


def test_steps_that_a_fix_leaves_as_they_are_do_not_run_again(
    compiled_run: Path, open_trials: Callable[[Path], Trials]
) -> None:
    trials = open_trials(compiled_run)
    assert trials.window.steps == tuple(range(FAILING + 1))

    cleaned, executed = trials.tried("clean_data", "drop_rows")
    assert (cleaned.outcome, executed) == ("prevents", 1 + LATER_STEPS)
    epsilon, executed = trials.tried("epsilon")
    assert (epsilon.outcome, executed) == ("prevents", ASKED + FAILING + 1 + LATER_STEPS)


def test_a_changed_program_shares_the_steps_in_which_it_changes_nothing(
    compiled_run: Path, open_trials: Callable[[Path], Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = open_trials(compiled_run)
    wide = [trials.tried(name, "1024") for name in ("clipvalue", "clipnorm", "global_clipnorm")]
    # the failing step refutes it, and nothing runs after that
    assert [fix.outcome for fix, _ in wide] == ["fails"] * 3
    assert [executed for _, executed in wide] == [ASKED + 1, 1, 1]
    narrow, executed = trials.tried("clipvalue", "1e-6")
    assert (narrow.outcome, executed) == ("fails", FAILING + 1)
    # of a norm times 1000, divided by 1000, the last bit may be another
    assert trials.tried("clipnorm", "1000")[1] == FAILING + 1

    monkeypatch.setattr(Edit, "leaves_program", lambda self, step: not self.programs)
    whole = [trials.tried(name, "1024") for name in ("clipvalue", "clipnorm", "global_clipnorm")]
    assert [executed for _, executed in whole] == [FAILING + 1] * 3
    assert [repr(fix) for fix, _ in whole] == [repr(fix) for fix, _ in wide]


def test_the_steps_from_the_first_that_is_changed_run(
    compiled_run: Path, open_trials: Callable[[Path], Trials]
) -> None:
    def doubled(step: int, leaves: Sequence[Any]) -> Sequence[Any]:
        return [2 * np.asarray(leaf) for leaf in leaves] if step == MIDDLE else leaves

    trials = open_trials(compiled_run)
    edit = Edit(batches=(doubled,))
    steps = trials.steps_of(edit)
    assert steps <= MIDDLE + FAILING - MIDDLE + 1  # the state before it is reached once
    assert trials.steps_of(edit) == FAILING - MIDDLE + 1
    outcome = trials.window.run(edit)
    losses = [result.loss for result in outcome.results]
    unchanged = [trials.window.unchanged_losses[step] for step in range(FAILING)]
    assert losses[:MIDDLE] == unchanged[:MIDDLE]
    assert losses[MIDDLE] != unchanged[MIDDLE]


def test_the_steps_of_an_eager_loop_run_once_for_all_fixes(
    eager_run: Path, open_trials: Callable[[Path], Trials]
) -> None:
    trials = open_trials(eager_run)
    before = len(trials.window.steps) - 1
    assert before > 0

    cleaned, executed = trials.tried("clean_data", "drop_rows")
    assert (cleaned.outcome, executed) == ("prevents", before + 1 + LATER_STEPS)
    again, executed = trials.tried("clean_data", "drop_rows")
    assert (again, executed) == (cleaned, 1 + LATER_STEPS)
    assert trials.tried("clipvalue", "1024")[1] == 1


def test_steps_under_loss_scaling_are_shared_too(
    open_trials: Callable[[Path], Trials],
) -> None:
    sample_runs = Path(__file__).resolve().parents[2] / "sample_runs"
    trials = open_trials(sample_runs / "float16_overflow.h5")
    assert trials.window.signature().loss_scaled
    cleaned, executed = trials.tried("clean_data", "drop_rows")
    assert (cleaned.outcome, executed) == ("prevents", 1 + LATER_STEPS)


def test_all_fixes_that_fit_are_tried_where_each_takes_few_eager_steps(
    compiled_run: Path, open_trials: Callable[[Path], Trials], monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = open_trials(compiled_run).failure
    told: list[FixResult] = []

    def tried() -> TriedFixes:
        told.clear()
        replay = failure.window.replay
        return what_if(replay, failure.bisection, failure.causes, budget=0.0, each=told.append)

    whole = tried()
    assert whole.left_out == ()
    assert list(whole.results) == told
    names = {fix.name for fix in told}
    assert {"epsilon", "double_where", "clean_data", "clipnorm", "lr"} <= names

    monkeypatch.setattr(TrialWindow, "eager_step_s", lambda self: self.work_s() / 21)
    few = tried()
    assert few.results == whole.results[:LEAST_TRIED]
    assert {text.partition("=")[0] for text in few.left_out} >= {"clipnorm", "lr"}


def test_variables_that_a_later_program_takes_first_are_as_it_found_them(
    tmp_path: Path, open_trials: Callable[[Path], Trials]
) -> None:
    """Each third batch is smaller, and its program has a second kernel."""
    first = tf.Variable(tf.ones([3, 1]), name="first")
    second = tf.Variable(tf.fill([1, 1], 2.0), name="second")
    recorder = Recorder(tmp_path / "run.h5", on_nan="stop")

    @recorder.wrap
    @tf.function
    def step(x: Any, y: Any) -> Any:
        trained = [first, second][: 2 if x.shape[0] < ROWS else 1]
        with tf.GradientTape() as tape:
            output = tf.math.log(x)
            for kernel in trained:
                output = output @ kernel
            loss = tf.reduce_mean(tf.square(output - y))
        for kernel, gradient in zip(trained, tape.gradient(loss, trained), strict=True):
            kernel.assign_sub(0.01 * gradient)
        return loss

    for number, (x, y) in enumerate(batches()):
        rows = 5 if number % 3 == MIDDLE else ROWS
        step(tf.constant(x[:rows]), tf.constant(y[:rows]))
        if recorder.stopped:
            break
    recorder.close()
    trials = open_trials(tmp_path / "run.h5")
    result, executed = trials.tried("clean_data", "drop_rows")
    assert (result.prevents, executed) == (True, 1 + LATER_STEPS)
    assert trials.window.first_norm() == pytest.approx(7**0.5)
    # that a program met a variable is no change from outside
    assert not any(trials.window.changes.values())
