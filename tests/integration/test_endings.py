"""All ways in which a training ends, or goes on after an incident: the file is there, and nothing
stays behind."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import endings
import keras
import numpy as np
import pytest
import tensorflow as tf
import warm_python
from conftest import environment
from endings import At
from trainings import BATCH, assert_same_bits, data, replayed, with_all_variables

from nanreplay import AttachError, Capture, NonFiniteError, Recorder
from nanreplay.recorder import signals


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The files of all processes of `endings.py`, and how each ended."""
    folder = tmp_path_factory.mktemp("ended")
    done = warm_python.run([endings.__file__, folder], check=True, env=environment())
    return folder, json.loads(done.stdout)


class Nobody:
    """Listens to signals, and does nothing."""

    is_in_step = is_writing = False

    def write(self, name: str, *, prove: bool) -> None: ...

    def ended_by(self, error: BaseException) -> None: ...


@pytest.fixture(autouse=True)
def nothing_stays_installed() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    nobody = Nobody()
    for number in numbers:  # takes out what recordings left that other tests forgot
        signals.listen(nobody, number)
    signals.leave(nobody)
    given = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in the background a shell has it ignored
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1
    signal.signal(signal.SIGINT, given)


@pytest.mark.xdist_group("ended")
@pytest.mark.parametrize(
    ("scenario", "code", "steps"),
    [
        ("sigterm_between_steps", -signal.SIGTERM, 3),
        ("sigterm_in_an_eager_step", -signal.SIGTERM, 4),  # at the end of the step that was running
        ("sigterm_in_an_eager_step_without_end", -signal.SIGTERM, 3),
        ("sigterm_while_data_never_comes", -signal.SIGTERM, 4),
        ("exit_in_a_callback", 7, 3),
    ],
)
def test_a_process_that_is_ended_leaves_its_window(
    ended: tuple[Path, dict[str, int]], scenario: str, code: int, steps: int
) -> None:
    folder, codes = ended
    assert codes[scenario] == code, (folder / f"{scenario}.err").read_text()
    with Capture(folder / f"{scenario}.h5") as capture:
        assert capture.incident.trigger.what == "manual"
        assert capture.incident.trigger.name == ("SystemExit" if code == 7 else "SIGTERM")
        assert list(capture.steps) == list(range(steps))
        assert capture.incident.step == steps - 1


@pytest.mark.xdist_group("ended")
def test_a_forked_process_ends_as_without_a_recorder_and_leaves_its_parent_alone(
    ended: tuple[Path, dict[str, int]],
) -> None:
    folder, codes = ended
    assert codes["sigterm_in_a_forked_process"] == 0, (
        folder / "sigterm_in_a_forked_process.err"
    ).read_text()
    assert not (folder / "sigterm_in_a_forked_process.h5").exists()


def small_model() -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(momentum=0.9), "mse", jit_compile=False)
    model.build((None, 3))
    return with_all_variables(model)


def fit(*callbacks: Any, model: Any = None, bad_step: int | None = None, **options: Any) -> Any:
    x, y = data(bad_step)
    model = model or small_model()
    model.fit(
        x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=list(callbacks), **options
    )
    return model


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def assert_manual(path: Path, name: str, step: int) -> None:
    with Capture(path) as capture:
        assert (
            capture.incident.trigger.what,
            capture.incident.trigger.name,
            capture.incident.step,
        ) == ("manual", name, step)
        assert capture.steps[-1] == step


def test_the_previous_sigterm_handler_is_called_after_the_dump_and_training_goes_on(
    tmp_path: Path, capsys: Any
) -> None:
    path, called = tmp_path / "run.h5", []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(path.exists()))
    try:
        model = fit(Recorder(path), At(1, send(signal.SIGTERM)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert called == [True]
    assert_manual(path, "SIGTERM", 1)
    assert "wrote" in capsys.readouterr().err
    assert_same_bits(
        [np.asarray(v) for v in model.variables], [np.asarray(v) for v in fit().variables]
    )


def test_an_ignored_sigterm_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        fit(Recorder(tmp_path / "run.h5"), At(1, send(signal.SIGTERM)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "error"),
    [(send(signal.SIGINT), KeyboardInterrupt), (raising(KeyboardInterrupt()), KeyboardInterrupt)],
)
def test_ctrl_c_between_the_steps_of_fit(tmp_path: Path, act: Any, error: Any) -> None:
    path, model = tmp_path / "run.h5", small_model()
    recorder = Recorder(path)
    with pytest.raises(error):
        fit(recorder, At(2, act), model=model)
    assert_manual(path, "KeyboardInterrupt", 2)
    assert [each.bit_exact for each in replayed(path)] == [True] * 3
    assert "FitFunction" not in type(model.train_function).__name__
    with pytest.raises(NonFiniteError) as caught:  # and on with the same recorder, as in a notebook
        fit(recorder, model=model, bad_step=3)
    assert caught.value.step == 6
    assert caught.value.path == str(tmp_path / "run.1.h5")
    assert all(each.bit_exact for each in replayed(tmp_path / "run.1.h5"))


def test_an_exception_of_another_callback_leaves_nothing_installed_and_writes_nothing(
    tmp_path: Path,
) -> None:
    model = small_model()
    with pytest.raises(ZeroDivisionError):
        fit(
            Recorder(tmp_path / "run.h5", dump_signal="SIGUSR1"),
            At(2, raising(ZeroDivisionError())),
            model=model,
        )
    assert not list(tmp_path.iterdir())
    assert "FitFunction" not in type(model.train_function).__name__


def loop(recorder: Recorder, act: Callable[[int], Any], *, inside: bool) -> None:
    """Six steps of `x -> x * weight`, with `act` called inside of each or after it."""
    weight = tf.Variable(1.0)

    def step(x: Any) -> Any:
        weight.assign_add(0.5)
        if inside:
            act(int(x))
        return x * weight

    recorded = recorder.wrap(step if inside else tf.function(step))
    for number in range(6):
        recorded(tf.constant(float(number)))
        if not inside:
            act(number)


@pytest.mark.parametrize("inside", [True, False])
def test_ctrl_c_in_a_loop_writes_the_whole_steps(tmp_path: Path, inside: bool) -> None:
    path = tmp_path / "run.h5"
    recorder = Recorder(path)
    with pytest.raises(KeyboardInterrupt):
        loop(recorder, lambda step: step == 3 and send(signal.SIGINT)(), inside=inside)
    assert_manual(path, "KeyboardInterrupt", 2 if inside else 3)
    recorder.close()


@pytest.mark.parametrize("inside", [True, False])
def test_exit_through_the_context_manager(tmp_path: Path, inside: bool) -> None:
    path = tmp_path / "run.h5"
    with pytest.raises(SystemExit), Recorder(path) as recorder:
        loop(recorder, lambda step: step == 3 and sys.exit(1), inside=inside)
    assert_manual(path, "SystemExit", 2 if inside else 3)


def test_a_loop_that_ends_well_leaves_no_file_and_no_handler(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run.h5") as recorder:
        loop(recorder, lambda step: None, inside=False)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert not list(tmp_path.iterdir())


def test_a_signal_asks_for_files_while_training_goes_on(tmp_path: Path) -> None:
    with Recorder(tmp_path / "run.h5", dump_signal=signal.SIGUSR1) as recorder:
        loop(recorder, lambda step: step in (2, 4) and send(signal.SIGUSR1)(), inside=True)
    assert_manual(tmp_path / "run.h5", "SIGUSR1", 2)
    assert_manual(tmp_path / "run.1.h5", "SIGUSR1", 4)


def test_another_callback_dumps_on_demand(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.h5")
    fit(
        recorder,
        At(1, lambda: recorder.dump("a look")),
        At(4, lambda: recorder.dump("a second look")),
    )
    assert recorder.path == tmp_path / "run.1.h5"
    for path, step in ((tmp_path / "run.h5", 1), (recorder.path, 4)):
        assert_manual(path, "dump", step)
        assert all(each.bit_exact for each in replayed(path))


def test_the_file_of_a_signal_holds_what_one_on_demand_holds(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.h5")
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        fit(recorder, At(3, lambda: recorder.dump()), At(4, send(signal.SIGTERM)))
    finally:
        signal.signal(signal.SIGTERM, before)
    with Capture(tmp_path / "run.h5") as asked, Capture(tmp_path / "run.1.h5") as ended:
        assert (asked.incident.trigger.name, ended.incident.trigger.name) == ("dump", "SIGTERM")
        assert asked.keyframe_steps == ended.keyframe_steps
        for step in ended.keyframe_steps:
            one, other = asked.keyframe(step), ended.keyframe(step)
            assert_same_bits([*one.values()], [*other.values()])
        assert ended.steps == (*asked.steps, 4)
        assert ended.weights(4) == {}
        assert asked.weights(3)
    assert all(each.bit_exact for each in replayed(tmp_path / "run.1.h5"))


@pytest.mark.parametrize("value", ["SIGKILL", "SIGTERM", signal.SIGINT, 1000, True, "USR1"])
def test_a_dump_signal_that_is_none_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(AttachError, match=r"dump_signal.*Expected None or one of SIGUSR1"):
        Recorder(tmp_path / "run.h5", dump_signal=value)


def spoiled(kind: str, recorder: Recorder, bad: set[int], *, steps: int = 12) -> list[float]:
    """Train on batches of which some are NaN; the weight is put right after each."""
    weight = tf.Variable(1.0)

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.square(weight * x - 2.0)
        weight.assign_sub(0.1 * tape.gradient(loss, weight))
        return loss

    recorded = recorder.wrap(
        step if kind == "eager" else tf.function(step, jit_compile=kind == "xla")
    )
    weights = []
    for number in range(steps):
        recorded(tf.constant(np.nan if number in bad else 1.0))
        weights.append(float(weight))
        if number in bad and number + 1 not in bad:
            weight.assign(0.5)
    return weights


@pytest.mark.parametrize("kind", ["eager", "graph", "xla"])
def test_continue_writes_each_incident_after_a_healthy_step_and_then_stays_quiet(
    tmp_path: Path, kind: str
) -> None:
    with (
        Recorder(tmp_path / "run.h5", on_nan="continue", max_incidents=2) as recorder,
        pytest.warns(UserWarning, match="nanreplay") as warned,
    ):
        weights = spoiled(kind, recorder, {2, 3, 4, 7, 10})
    assert not recorder.stopped
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["run.1.h5", "run.h5"]
    for path, step, first in ((tmp_path / "run.h5", 2, 0), (tmp_path / "run.1.h5", 7, 6)):
        with Capture(path) as capture:
            assert capture.incident.step == step
            assert capture.incident.reproduced
            assert capture.steps[0] == first
            assert list(capture.timeline()["step"]) == list(range(step + 1))
        results = replayed(path)
        assert all(each.bit_exact for each in results)
        assert not results[-1].finite
    ours = [each for each in warned if each.category is UserWarning]  # AutoGraph warns, too
    said = [str(each.message) for each in ours]
    assert len(said) == 2
    assert "run.h5" in said[0]
    assert "max_incidents=2" in said[1]
    bare = Recorder(tmp_path / "other.h5")
    bare.close()
    assert_same_bits(weights, spoiled(kind, bare, {2, 3, 4, 7, 10}))


def test_weights_that_stay_nan_are_one_incident(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.h5", on_nan="continue")
    with pytest.warns(UserWarning, match="step 3") as warned:
        model = fit(recorder, bad_step=3, epochs=3)
    assert len(warned) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]
    assert_same_bits(
        [np.asarray(v) for v in model.variables],
        [np.asarray(v) for v in fit(bad_step=3, epochs=3).variables],
    )


def test_exceptions_of_steps_are_incidents_that_a_loop_may_survive(tmp_path: Path) -> None:
    @tf.function
    def step(x: Any) -> Any:
        tf.debugging.assert_less(x, 10.0)
        return x * 2.0

    with Recorder(tmp_path / "run.h5", on_nan="continue") as recorder:
        recorded = recorder.wrap(step)
        for x in (1.0, 20.0, 2.0, 3.0, 30.0, 4.0):
            if x < 10:
                recorded(tf.constant(x))
                continue
            with (
                pytest.warns(UserWarning, match="raised InvalidArgumentError"),
                pytest.raises(tf.errors.InvalidArgumentError),
            ):
                recorded(tf.constant(x))
    for name, at in (("run.h5", 1), ("run.1.h5", 4)):
        with Capture(tmp_path / name) as capture:
            assert (capture.incident.trigger.what, capture.incident.step) == ("exception", at)


def test_the_next_fit_is_recorded_after_an_incident(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run.h5")
    for name, step in (("run.h5", 3), ("run.1.h5", 7)):
        with pytest.raises(NonFiniteError) as caught:
            fit(recorder, bad_step=3)
        assert (caught.value.path, caught.value.step) == (str(tmp_path / name), step)
