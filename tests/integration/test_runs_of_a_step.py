"""How often a failing step runs until its verdict, its origin and its cause are known.

And that what is remembered of large tensors gives the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from trainings import with_all_variables

from nanreplay import Recorder
from nanreplay.bisect import op_trace, recent_events
from nanreplay.capture import Capture
from nanreplay.program.compiled_program import CompiledProgram
from nanreplay.replay import Replay
from nanreplay.replay.interpreter import Interpreter
from nanreplay.replay.matrix_changes import change_between
from nanreplay.replay.replay_state import KnownStates
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain
from nanreplay.report.replayed_steps import replay_steps
from nanreplay.report.report_json import to_json

BAD_STEP, ROWS, WIDTH = 4, 8, 16
pytestmark = [
    pytest.mark.filterwarnings("ignore:nanreplay. step"),
    pytest.mark.xdist_group("runs of a step"),  # one worker makes the captures
]


def log_of_zero(x: Any) -> Any:
    """A model that takes the logarithm of its input."""
    logarithm = keras.layers.Lambda(keras.ops.log, output_shape=lambda shape: shape)(x)
    hidden = keras.layers.Dense(WIDTH, activation="gelu")(keras.layers.LayerNormalization()(x))
    return hidden + logarithm


def dropped_log(x: Any) -> Any:
    """A model whose forward pass drops the logarithm of 0, and whose backward pass does not."""
    hidden = keras.layers.Dense(WIDTH)(x)

    def safe(values: Any) -> Any:
        given, made = values
        is_given = keras.ops.abs(given) > 0
        return keras.ops.where(is_given, keras.ops.log(keras.ops.abs(made * given)), made)

    return keras.layers.Lambda(safe, output_shape=lambda shapes: shapes[0])([x, hidden])


@pytest.fixture(scope="module", params=[log_of_zero, dropped_log], ids=lambda made: made.__name__)
def capture(request: Any, tmp_path_factory: Any) -> Iterator[str]:
    """A training that fails in its fifth step, for a 0 in a row of the batch."""
    keras.utils.set_random_seed(1)
    build: Callable[[Any], Any] = request.param
    inputs = keras.Input((WIDTH,))
    model = keras.Model(inputs, keras.layers.Dense(1)(build(inputs)))
    model.compile("adam", "mse", jit_compile=False)
    with_all_variables(model)
    random = np.random.default_rng(1)
    x = random.uniform(0.5, 1.5, (ROWS * (BAD_STEP + 1), WIDTH)).astype("float32")
    x[ROWS * BAD_STEP + 3, 5] = 0.0
    path = tmp_path_factory.mktemp("runs") / "run.h5"
    y = np.zeros((len(x), 1), "float32")
    recorder = Recorder(path, on_nan="stop")
    model.fit(x, y, batch_size=ROWS, shuffle=False, verbose=0, callbacks=[recorder])
    yield str(path)
    keras.backend.clear_session(free_memory=False)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often steps ran: whole and op by op, partly and op by op, compiled."""
    count = {"whole": 0, "partly": 0, "compiled": 0}
    interpret, call = Interpreter.run, CompiledProgram.__call__

    def counted_run(self: Interpreter, *args: Any, **options: Any) -> Any:
        count["whole" if options.get("targets") else "partly"] += 1
        return interpret(self, *args, **options)

    def counted_call(self: CompiledProgram, *args: Any) -> Any:
        count["compiled"] += 1
        return call(self, *args)

    monkeypatch.setattr(Interpreter, "run", counted_run)
    monkeypatch.setattr(CompiledProgram, "__call__", counted_call)
    return count


def test_the_whole_step_runs_op_by_op_once(capture: str, runs: dict[str, int]) -> None:
    report = explain(capture, fixes="none")
    assert report.findings.origin is not None
    loss_fails = report.trigger.what == "loss"
    # where no loss is NaN, the whole step tells what float64 makes of it
    assert runs["whole"] == (1 if loss_fails else 2)
    with Capture(capture) as held:
        window = BAD_STEP - held.keyframe_steps[0] + 1
    assert runs["compiled"] == window  # it came out as recorded, so it does not run once more
    assert runs["partly"] <= 8  # rows of the batch, and the losses in float64


def test_the_cause_of_a_large_state_needs_no_step_once_more(
    capture: str, runs: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = told(explain(capture, fixes="none"))
    compiled = runs["compiled"]
    monkeypatch.setattr("nanreplay.replay.replay_state._LARGE_STATE", 0)
    assert told(explain(capture, fixes="none")) == small
    assert runs["compiled"] == 2 * compiled
    with Capture(capture) as held, Replay(held) as replay:
        assert held.keyframe_steps == (0,)
        before, after = replay.state(BAD_STEP - 1), replay.state(BAD_STEP)
        change = change_between(replay.variables, before, after)
        replay.run_window("recorded", last=BAD_STEP)
        assert replay.change(BAD_STEP - 1) == change
        assert change.ratio > 0.0
        assert not isinstance(replay.state(0), dict)  # read from the file as it is asked for


def test_replaying_the_steps_alone_holds_no_second_state(
    capture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    add = KnownStates.add

    def noted(self: KnownStates, step: int, state: Any) -> None:
        kept.append(step)
        add(self, step, state)

    monkeypatch.setattr(KnownStates, "add", noted)
    with Capture(capture) as held:
        results, _ = replay_steps(held, "recorded")
        assert (results[-1].step, results[-1].finite) == (BAD_STEP, False)
        assert all(result.bit_exact for result in results)
        assert not kept
        with Replay(held) as replay:
            assert replay.run_window("recorded")[-1].step == BAD_STEP
            assert BAD_STEP in kept  # for who asks for its ops next


def told(report: Report) -> Any:
    """What a report says, without what it took."""
    return to_json(replace(report, peak_bytes=None))


def test_outlines_of_tensors_give_the_same_answer(
    capture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = told(explain(capture, fixes="none"))
    monkeypatch.setattr(op_trace, "KEPT_BYTES", 0)
    monkeypatch.setattr("nanreplay.bisect.outlines.LEAST_BYTES", 0)
    monkeypatch.setattr(recent_events, "RECENT_BYTES", 0)
    made: list[object] = []
    outlined = op_trace.outlined

    def noted(*args: Any, **options: Any) -> Any:
        made.append(outlined(*args, **options))
        return made[-1]

    monkeypatch.setattr(op_trace, "outlined", noted)
    assert told(explain(capture, fixes="none")) == kept
    assert sum(outline is not None for outline in made) > len(made) / 2


def test_large_states_are_replayed_instead_of_kept() -> None:
    class Info:
        shape, dtype = (1 << 26,), "float32"

    states = KnownStates([Info()], pinned=7)  # type: ignore[list-item]
    for step in (7, 5, 6):
        states.add(step, {})
    assert list(states) == [7, 6]
    states.make_room()
    assert list(states) == [7]


def test_the_peak_of_memory_is_in_the_document(capture: str) -> None:
    memory = to_json(explain(capture, fixes="none"))["memory"]
    assert memory["peak_bytes"] > memory["state_bytes"] > 4 * WIDTH * WIDTH


def test_a_lazy_keyframe_is_the_keyframe(capture: str) -> None:
    with Capture(Path(capture)) as held:
        step = held.keyframe_steps[0]
        whole, lazy = held.keyframe(step), held.lazy_keyframe(step)
        assert list(lazy) == list(whole)
        assert all(np.array_equal(lazy[index], array) for index, array in whole.items())
        with pytest.raises(KeyError):
            lazy[len(whole)]
