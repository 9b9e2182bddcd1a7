"""Errors raised inside the recorder, at the first call of any of its functions, while it records a
real training."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from injected_corners import busy_loop, drawing_loop

import nanreplay
from nanreplay import Capture, Recorder
from nanreplay.recorder import environment, pace
from nanreplay.recorder.pace import FIRST_LOOKS

PACKAGE = Path(nanreplay.__file__).parent
ROOMS = ("recorder", "program", "tensorflow_internals", "capture")
"""Packages that run while a training is recorded."""

FRAMES = (
    # around the training's own step: an error as they begin would be Python's
    "recorder/callback.py:on_", "recorder/callback.py:wrap",
    "recorder/callback.py:close", "recorder/callback.py:dump", "recorder/callback.py:set_model",
    "recorder/callback.py:_suspected",
    "recorder/callback.py:recorded", "recorder/fit_hooks.py:__call__",
    "recorder/fit_hooks.py:_keras_way", "recorder/fit_hooks.py:train_step",
    "recorder/fit_hooks.py:hook", "recorder/ending.py:run", "recorder/ending.py:end_step",
    "recorder/compiled_calls.py:call", "recorder/compiled_calls.py:call_directly",
    "recorder/compiled_calls.py:_run",
    "recorder/compiled_calls.py:_record_raised", "recorder/compiled_calls.py:_suspect",
    "recorder/compiled_calls.py:_raised",
    "recorder/compiled_calls.py:trained_eagerly", "recorder/eager_step.py:call",
    "recorder/eager_step.py:note_variables",
    "recorder/eager_step.py:trained_eagerly", "recorder/eager_step.py:forget_call",
    "recorder/wrapped_step.py:", "recorder/lifecycle.py:",
    "recorder/eager_step.py:begin", "recorder/eager_step.py:raised", "recorder/eager_step.py:_stop",
    "recorder/eager_step.py:ended",
    "recorder/eager_reads.py:read_before.<locals>.assign",
    "recorder/eager_step.py:__call__", "program/observe.py:call_flat",
    "program/listening.py:listening", "program/listening.py:muted",
    "program/listening.py:start_listening", "program/listening.py:stop_listening",
    "program/observe.py:init",
    "program/listening.py:current_notes", "program/observe.py:observed",
    "tensorflow_internals/tf_functions.py:is_top_level",
    "tensorflow_internals/tf_functions.py:is_tape_recording",
    "tensorflow_internals/tf_functions.py:pack_outputs",
    "tensorflow_internals/tf_functions.py:__call__",
    "tensorflow_internals/tf_functions.py:run_flat",
    "tensorflow_internals/tf_functions.py:_call_flat",
    "tensorflow_internals/tf_traces.py:_run", "recorder/trace_chooser.py:call",
    "recorder/trace_chooser.py:_run", "recorder/trace_chooser.py:run",
    "program/observe.py:call",
    "program/fetching.py:run", "program/observation.py:notes_of",
    "recorder/incidents.py:handle", "recorder/incidents.py:_write", "recorder/incidents.py:settle",
    "recorder/incidents.py:dump",
    "recorder/ending.py:ended_by", "recorder/signals.py:answer_pending",
    "recorder/recording.py:guard",
    "recorder/recording.py:fail", "program/observed_calls.py:run_observed",
    "program/observe.py:__exit__",
    "program/observed_calls.py:forward_token",
    "program/observed_calls.py:observed_gradient_function",
    "tensorflow_internals/tf_eager.py:record_gradient",
    "program/python_effects.py:assign", "program/python_effects.py:note",
    "program/python_effects.py:draw", "program/python_effects.py:note",
    "tensorflow_internals/tf_eager.py:gradient_function", "tensorflow_internals/tf_eager.py:call",
    "recorder/eager_reads.py:callback",
    "recorder/signals.py:_watch",
    "capture/temporary.py:seek", "capture/temporary.py:tell", "capture/temporary.py:read",
    "capture/temporary.py:write",
    "capture/temporary.py:truncate", "capture/temporary.py:flush",
    # what `fit` is given: of Keras's own outputs, without which it cannot go on
    "recorder/recorded_function.py:outputs_of_last",
    # around the function of a replica, in its thread
    "tensorflow_internals/tf_distribution.py:start",
    "tensorflow_internals/tf_distribution.py:merge_call",
    "program/collectives.py:_started", "program/collectives.py:_merging",
    "program/collectives.py:_resumed",
    "program/collectives.py:run", "program/collectives.py:merge", "program/collectives.py:_guard",
    # which undo, and are called again by nobody
    "tensorflow_internals/tf_eager.py:undo", "program/observe.py:release",
)  # fmt: skip
"""Functions that catch the errors of the others, with what they do themselves before they can."""


@dataclass
class Injector:
    """Raises `error` when `target` is called; without a target, lists all functions of the recorder
    that are called."""

    target: CodeType | None = None
    error: BaseException = field(default_factory=lambda: RuntimeError("injected"))
    called: dict[str, CodeType] = field(default_factory=dict)
    happened: bool = False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if self.target is not None:
            if code is self.target and event == "call" and not self.happened:
                self.happened = True
                raise self.error  # Python then takes this profiler out
            return
        if event != "call" or not code.co_filename.startswith(str(PACKAGE)):
            return
        room = Path(code.co_filename).relative_to(PACKAGE)
        if room.parts[0] not in ROOMS or code.co_name.startswith("<"):
            return
        self.called.setdefault(f"{room}:{code.co_qualname}", code)


def compiled_loop(path: Path | None, begin: Callable[[], None]) -> list[bytes]:
    return _loop(path, begin, tf.function)


def xla_loop(path: Path | None, begin: Callable[[], None]) -> list[bytes]:
    return _loop(path, begin, lambda step: tf.function(step, jit_compile=True))


def eager_loop(path: Path | None, begin: Callable[[], None]) -> list[bytes]:
    return _loop(path, begin, lambda step: step)


def large_loop(path: Path | None, begin: Callable[[], None]) -> list[bytes]:
    """Variables are looked at as seldom as may be, and one turns NaN in a step that is not looked
    at, which later ones show."""
    with mock.patch.object(pace, "LOOK_SHARE", 1e-9):
        return _loop(
            path,
            begin,
            tf.function,
            bad_update=FIRST_LOOKS + 2,
            batches=[_batches()[0]] * (FIRST_LOOKS + 20),
        )


def _loop(
    path: Path | None,
    begin: Callable[[], None],
    kind: Callable[[Any], Any],
    bad_update: int | None = None,
    batches: Any = None,
) -> list[bytes]:
    keras.utils.set_random_seed(1)
    dense, optimizer = keras.layers.Dense(2), keras.optimizers.SGD(0.1, momentum=0.9)
    dense.build((None, 3))
    optimizer.build(dense.trainable_variables)

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(dense(x) - 1.0))
        optimizer.apply(tape.gradient(loss, dense.trainable_variables), dense.trainable_variables)
        if bad_update is not None:
            left = tf.cast(bad_update - optimizer.iterations, tf.float32)
            dense.bias.assign(dense.bias * (left / left))
        return loss

    recorded = kind(step)
    recorder = None if path is None else _recorder(path)
    begin()
    if recorder is not None:
        recorded = recorder.wrap(recorded, optimizer=optimizer)
    losses = [
        np.asarray(recorded(tf.constant(batch))).tobytes()
        for batch in (_batches() if batches is None else batches)
    ]
    if recorder is not None:
        recorder.close()
    return [
        *losses,
        *(np.asarray(variable).tobytes() for variable in [*dense.variables, *optimizer.variables]),
    ]


def fit(
    path: Path | None, begin: Callable[[], None], *, is_built: bool = False, **options: Any
) -> list[bytes]:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", jit_compile=False, **options)
    if is_built:
        model.build((None, 3))
        model.optimizer.build(model.trainable_variables)
    x = np.concatenate(_batches())
    callbacks = [] if path is None else [_recorder(path)]
    begin()
    history = model.fit(
        x,
        np.ones((len(x), 2), "float32"),
        batch_size=2,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    losses = [np.float64(loss).tobytes() for loss in history.history["loss"]]
    return [
        *losses,
        *(
            np.asarray(variable).tobytes()
            for variable in [*model.variables, *model.optimizer.variables]
        ),
    ]


def built_fit(path: Path | None, begin: Callable[[], None]) -> list[bytes]:
    """TensorFlow traces its step once: the first step makes no variables."""
    return fit(path, begin, is_built=True)


def eager_fit(path: Path | None, begin: Callable[[], None]) -> list[bytes]:
    return fit(path, begin, run_eagerly=True)


SCENARIOS = {each.__name__: each for each in (compiled_loop, xla_loop, eager_loop, fit, eager_fit)}
SPECIAL = {each.__name__: each for each in (large_loop, busy_loop, drawing_loop, built_fit)}
"""Trainings that reach what the usual ones do not."""


def _batches() -> Any:
    batches = np.random.default_rng(0).normal(size=(6, 2, 3)).astype("float32")
    batches[4, 1, 1] = np.nan
    return batches


def _recorder(path: Path) -> Recorder:
    return Recorder(path, on_nan="continue")


def _profile(injector: Injector | None) -> None:
    """Call `injector` from this thread, and from those that are started from now on."""
    sys.setprofile(injector)
    threading.setprofile(injector)


def run(
    scenario: str, path: Path | None, injector: Injector | None = None
) -> tuple[list[bytes], list[str]]:
    """Train; returns the bits of losses and variables, and the warnings."""
    tf.keras.backend.clear_session()
    with (
        warnings.catch_warnings(record=True) as warned,
        mock.patch.object(environment, "SHOWN_AFTER_S", 0.0),
    ):
        warnings.simplefilter("always")
        try:
            found = {**SCENARIOS, **SPECIAL}[scenario](path, lambda: _profile(injector))
        finally:
            _profile(None)
    return found, [str(each.message) for each in warned if "nanreplay" in str(each.message)]


def functions_of(scenario: str, path: Path, *, is_warm: bool = False) -> dict[str, CodeType]:
    """Every function of the recorder that runs in a scenario, the writing of a capture included,
    but for those that run once a process: unless a recorder ran before, it runs twice."""
    if not is_warm:
        run(scenario, path)
    injector = Injector()
    run(scenario, path, injector)
    return {name: code for name, code in injector.called.items() if not _is_frame(name)}


def _is_frame(name: str) -> bool:
    file, _, qualified = name.partition(":")
    return name in FRAMES or f"{file}:{qualified.rpartition('.')[2]}".startswith(FRAMES)


def harm(
    scenario: str,
    folder: Path,
    function: CodeType,
    error: Exception,
    bare: list[bytes],
    warned: int,
) -> list[str]:
    """What an error at the first call of `function` did that it must not do, where `warned`
    warnings are usual."""
    # an error of its own each time: one that is raised again keeps the frames of all trainings
    # before, and so their models
    path, injector = folder / "run.h5", Injector(function, type(error)(*error.args))
    try:
        found, said = run(scenario, path, injector)
    except Exception as raised:
        found, said = bare, [f"the training raised {raised!r}"]
    files = list(folder.glob("run*.h5"))  # no training of a process replaces the file of another
    reports = [each for each in said if f"Please report this: {type(error).__name__}" in each]
    harms = {
        "was never raised": not injector.happened,
        "changed the training": found != bare,
        "said nothing": not (reports or files or isinstance(error, MemoryError)),
        f"said {said}": len(said) > 1 + warned
        or len(reports) > 1
        or any("the training raised" in each for each in said),
        "left a temporary file": any(folder.glob("*.tmp")),
    }
    for file in files:
        Capture(file).close()
    for each in folder.iterdir():
        each.unlink()
    return [what for what, is_so in harms.items() if is_so]
