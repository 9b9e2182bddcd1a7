"""In a wrapped step a `tf.function` runs as TensorFlow would: in the same trace, or a new one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from nanreplay import NonFiniteError, Recorder
from nanreplay.tensorflow_internals.tf_traces import KnownTraces

pytestmark = pytest.mark.xdist_group("known traces")


HALF = tf.constant(0.5)
_NUMBERS = itertools.count()


class Training:
    """A weight that a `tf.function` trains, and how often Python ran its body."""

    def __init__(self, **options: Any) -> None:
        self.bodies = 0
        self.weight = tf.Variable([1.0, 2.0])
        self.step = tf.function(self._step, **options)

    def _step(self, x: Any, scale: Any) -> Any:
        self.bodies += 1
        if scale is None:  # what it is given is one structure
            x, scale = (x["b"], x["a"]) if isinstance(x, dict) else x
            scale = 0.25 if scale is None else scale
        with tf.GradientTape() as tape:
            loss = tf.cast(scale, tf.float32) * tf.reduce_mean(tf.square(self.weight * x))
        checked = tf.debugging.check_numerics(loss, "the loss is bad")
        self.weight.assign_sub(0.1 * tape.gradient(loss, self.weight))
        return {"loss": checked, "rows": tf.shape(x)[0]}


Wrap = Callable[[Training], Callable[..., Any]]


@pytest.fixture(params=["a tf.function", "a plain function"])
def wrap(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Wrap]:
    """Records the step of a training, or a plain function that calls it."""
    recorder = Recorder(tmp_path / "run.h5")

    def wrap(training: Training) -> Callable[..., Any]:
        if request.param == "a tf.function":
            return recorder.wrap(training.step)
        return recorder.wrap(lambda *args: training.step(*args))

    yield wrap
    recorder.close()


def _rows(count: int) -> Any:
    return tf.ones((count, 2))


def _ran(training: Training, step: Callable[..., Any], calls: list[Any]) -> tuple[Any, ...]:
    """All that a training shows: what its steps returned, its weight, its traces."""
    returned = []
    for call in calls:
        found = step(*call)
        returned.append((sorted(found), float(found["loss"]), int(found["rows"])))
    count = training.step.experimental_get_tracing_count()
    return returned, training.weight.numpy().tolist(), training.bodies, count


@pytest.mark.parametrize("options", [{}, {"reduce_retracing": True}], ids=["plain", "relaxed"])
def test_the_same_traces_run_for_the_same_arguments(wrap: Wrap, options: Any) -> None:
    calls: list[Any] = [(_rows(count), HALF) for count in (4, 4, 4, 2, 4, 2, 3, 2, 4)]
    # numbers of Python are traced each for itself, tensors once for all
    calls += [(_rows(4), 1.0), (_rows(4), 0.5), (_rows(4), 0.5)]
    calls += [(_rows(4), tf.constant(each)) for each in (1.0, 0.5, 0.25)]
    calls += [(_rows(4), each) for each in (tf.constant(1), HALF, tf.constant(1))]
    calls += [({"b": _rows(4), "a": HALF}, None), ({"a": HALF, "b": 3 * _rows(4)}, None)] * 3
    calls += [((2 * _rows(4), each), None) for each in (HALF, None, HALF, True, 1, True)]
    calls += [([2 * _rows(4), HALF], None), ((_rows(4), HALF), None), ([_rows(4), HALF], None)]
    bare, recorded = Training(**options), Training(**options)
    assert _ran(recorded, wrap(recorded), calls) == _ran(bare, bare.step, calls)


def test_a_known_trace_does_not_run_where_its_function_runs_eagerly(wrap: Wrap) -> None:
    training = Training()
    step = wrap(training)
    for _ in range(4):
        step(_rows(4), HALF)
    before = training.bodies
    tf.config.run_functions_eagerly(True)
    try:
        step(_rows(4), HALF)
    finally:
        tf.config.run_functions_eagerly(False)
    assert training.bodies == before + 1


def test_a_tape_of_the_users_own_sees_a_known_trace(wrap: Wrap) -> None:
    training = Training()
    step = wrap(training)
    for _ in range(4):
        step(_rows(4), HALF)
    x = _rows(4)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = step(x, HALF)["loss"]
    assert tape.gradient(loss, x) is not None


def test_an_error_of_a_known_trace_names_the_users_line(wrap: Wrap) -> None:
    training = Training()
    step = wrap(training)
    for _ in range(4):
        step(_rows(4), HALF)
    with pytest.raises((tf.errors.InvalidArgumentError, NonFiniteError)) as caught:
        step(_rows(4) * float("nan"), HALF)
    error: BaseException | None = caught.value
    told = []
    while error is not None:
        told.append(str(error))
        error = error.__cause__ or error.__context__
    assert any(Path(__file__).name in text and "the loss is bad" in text for text in told)


@pytest.fixture
def profiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each call of a step that a profile shows says: its name, and what is told of it."""
    kind, told = tf.profiler.experimental.Trace, list[Any]()
    begin, tell = kind.__init__, kind.set_metadata

    def begun(self: Any, name: str, **metadata: Any) -> None:
        begin(self, name, **metadata)
        self.name = name

    def telling(self: Any, **metadata: Any) -> None:
        tell(self, **metadata)
        if self.name == "_step":
            told.append((self.name, metadata))

    monkeypatch.setattr(kind, "__init__", begun)
    monkeypatch.setattr(kind, "set_metadata", telling)
    return told


def test_a_profile_shows_the_calls_of_a_recorded_step_as_those_of_a_bare_one(
    wrap: Wrap, profiled: list[Any]
) -> None:
    """The number of traces, too: some are made beside the calls that train."""
    shown = []
    for record in (lambda training: training.step, wrap):
        training = Training()
        step = record(training)
        for _ in range(4):
            step(_rows(4), HALF)
        training.step.get_concrete_function(_rows(2), HALF)
        for count in (4, 4, 2, 3):
            step(_rows(count), HALF)
        shown.append(list(profiled))
        profiled.clear()
    assert shown[0] == shown[1]
    assert [told["tracing_count"] for _, told in shown[1]] == [1, 1, 1, 1, 2, 2, 2, 3]


def test_a_trace_that_was_chosen_before_is_chosen_anew_once_there_is_another(wrap: Wrap) -> None:
    training = Training()
    step, known = wrap(training), KnownTraces(training.step)
    step(_rows(4), HALF)
    known.learn((_rows(4), HALF), training.step.get_concrete_function(_rows(4), HALF))
    assert known.find((_rows(4), HALF)) is not None
    training.step.get_concrete_function(_rows(2), HALF)
    assert known.find((_rows(4), HALF)) is None


def _counted_anew(training: Training) -> None:
    """Make the step another function for TensorFlow, which counts the calls of a code object."""

    def body(x: Any, scale: Any) -> Any:
        return training._step(x, scale)

    body.__code__ = body.__code__.replace(co_name=f"body_{next(_NUMBERS)}")
    training.step = tf.function(body, autograph=False)


def test_retracing_is_warned_of_as_without_the_recorder(
    wrap: Wrap, caplog: pytest.LogCaptureFixture
) -> None:
    """The calls that made no trace count, those of known traces too."""
    said = []
    for record in (lambda training: training.step, wrap):
        training = Training()
        _counted_anew(training)
        step = record(training)
        with caplog.at_level("WARNING", "tensorflow"):
            for rows in (1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5):
                step(_rows(rows), HALF)
        texts = [one.getMessage() for one in caplog.records]
        said.append([text.partition(" calls to ")[0] for text in texts if "retracing" in text])
        caplog.clear()
    assert said == [["5 out of the last 13"]] * 2
