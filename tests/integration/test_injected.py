"""An error anywhere inside the recorder is one warning, and the training goes on with the same
bits."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import h5py
import injected
import keras
import numpy as np
import pytest
import warm_python
from conftest import ROOT, environment
from injected import Injector, harm, run

from nanreplay import Capture, Recorder, Replay
from nanreplay.recorder import function_preparation

SOME = [
    "program/nonfinite_values.py:VariableSums.__call__", "program/listening.py:mark_regions",
    "recorder/recording.py:Recording.add_program",
    "recorder/compiled_calls.py:CompiledCalls._begin", "recorder/recording.py:Recording._check",
    "recorder/dump_window.py:gather",
    "capture/writer.py:CaptureWriter.batch",
]  # fmt: skip
FIT = [
    "program/fetching.py:InstrumentedFunction.__init__",
    "recorder/fit_hooks.py:check_strategy",
    "recorder/recorded_function.py:BatchCollector.take",
]
ENDS = [
    "program/python_effects.py:replace_functions.<locals>.undo",
    "tensorflow_internals/tf_distribution.py:hook_replica_threads.<locals>.undo",
    "capture/temporary.py:DiskFile.__init__",
]  # fmt: skip


def assert_harmless(scenario: str, folder: Path, names: list[str] | None, error: Exception) -> None:
    bare, _ = run(scenario, None)
    _, usual = run(scenario, folder / "usual.h5")
    functions = injected.functions_of(scenario, folder / "all.h5", is_warm=True)
    found = {}
    for name in names or functions:
        found[name] = harm(scenario, folder, functions[name], error, bare, len(usual))
    assert {name: harms for name, harms in found.items() if harms} == {}


@pytest.mark.parametrize(
    ("scenario", "names"),
    [
        pytest.param("compiled_loop", SOME, marks=pytest.mark.slow),
        pytest.param("fit", FIT, marks=pytest.mark.slow),
        ("built_fit", FIT),
    ],
)
def test_an_error_inside_the_recorder_never_reaches_the_training(
    tmp_path: Path, scenario: str, names: list[str]
) -> None:
    assert_harmless(scenario, tmp_path, names, RuntimeError("a bug"))


def test_an_error_at_either_end_of_an_eager_step_never_reaches_the_training(tmp_path: Path) -> None:
    assert_harmless("eager_loop", tmp_path, ENDS, RuntimeError("a bug"))


def test_after_an_error_inside_the_recorder_nothing_keeps_the_training_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = RuntimeError("a bug")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise held

    monkeypatch.setattr(function_preparation, "program_of", fail)
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="detached itself"):
        model.fit(
            np.ones((2, 3)), np.ones((2, 2)), verbose=0, callbacks=[Recorder(tmp_path / "run.h5")]
        )
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.slow
@pytest.mark.parametrize("scenario", injected.SCENARIOS)
@pytest.mark.timeout(1200)
def test_an_error_in_any_function_of_the_recorder(tmp_path: Path, scenario: str) -> None:
    assert_harmless(scenario, tmp_path, None, RuntimeError("a bug"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "usual", "known"),
    [
        ("large_loop", "compiled_loop", "recorder/ring.py:every_for"),
        ("busy_loop", "compiled_loop", "recorder/pace.py:LateReader.add"),
        (
            "drawing_loop",
            "eager_loop",
            "program/python_effects.py:RandomDraws.repeated.<locals>.give",
        ),
    ],
)
def test_an_error_in_what_is_not_usual(
    tmp_path: Path, scenario: str, usual: str, known: str
) -> None:
    before = injected.functions_of(usual, tmp_path / "usual.h5")
    names = [
        name for name in injected.functions_of(scenario, tmp_path / "all.h5") if name not in before
    ]
    assert known in names
    if scenario == "busy_loop":
        names += [
            "program/python_effects.py:AssignmentTracker._note",
            "recorder/recording.py:Recording.write",
        ]  # first called somewhere else
    assert_harmless(scenario, tmp_path, names, RuntimeError("a bug"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_error_in_what_replicas_need(tmp_path: Path) -> None:
    script = ROOT / "tests" / "integration" / "injected_replicas.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path],
        check=True,
        capture_output=True,
        text=True,
        env=environment(),
    )
    found = json.loads(done.stdout)
    assert "program/collectives.py:ReplicaThreads._handing_on" in found
    assert {name: harms for name, harms in found.items() if harms} == {}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_memory_in_any_function_of_the_recorder(tmp_path: Path) -> None:
    assert_harmless("compiled_loop", tmp_path, None, MemoryError())


def test_ctrl_c_inside_the_recorder_passes_through(tmp_path: Path) -> None:
    functions = injected.functions_of("eager_loop", tmp_path / "all.h5")
    for name in (
        "recorder/recording.py:Recording.after_eager",
        "capture/writer.py:CaptureWriter.batch",
    ):
        with pytest.raises(KeyboardInterrupt):
            run("eager_loop", tmp_path / "run.h5", Injector(functions[name], KeyboardInterrupt()))


WRITER = """
import resource, signal, sys
from pathlib import Path
from nanreplay.capture.temporary import replacing
import h5py, numpy
print("ready", flush=True)
while True:
    with replacing(Path(sys.argv[1])) as temporary, h5py.File(temporary, "w") as file:
        for number in range(200):
            file[str(number)] = numpy.full(5000, number)
        file.attrs["complete"] = True
"""


TRAINING = """
import sys
import keras, tensorflow as tf
from nanreplay import Recorder
dense, optimizer = keras.layers.Dense(1000), keras.optimizers.Adam()
dense.build((None, 1000))
@tf.function
def train(x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(dense(x) - 1.0))
    optimizer.apply(tape.gradient(loss, dense.trainable_variables), dense.trainable_variables)
    return loss
recorder = Recorder(sys.argv[1], keyframe_every=1, window=3)
step = recorder.wrap(train)
step(tf.ones([8, 1000]))
recorder.dump()
print("ready", flush=True)
while True:
    step(tf.ones([8, 1000]))
    recorder.dump()
"""


def kill_while_writing(script: str, path: Path, delay_s: float, *, must_meet: bool = False) -> int:
    """Start `script`, kill it `delay_s` after it began to write; returns how many temporary files
    it left. With `must_meet`, as soon after that as it is writing one."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while process.poll() is None and not any(path.parent.glob(".*.tmp")):
            pass
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(delay_s)
        while must_meet:
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)  # from here on it does nothing
            if any(path.parent.glob(".*.tmp")):
                break
            process.send_signal(signal.SIGCONT)
        process.kill()
    left = len(list(path.parent.glob(".*.tmp")))
    Recorder(path)  # the next start
    assert not list(path.parent.glob(".*"))
    return left


def assert_whole_or_absent(folder: Path, kills: int) -> None:
    random = np.random.default_rng()  # moments that no earlier run met are welcome
    left = 0
    for number in range(kills):
        delay_s = random.uniform(0.0, 0.15)
        left += kill_while_writing(WRITER, folder / "run.h5", delay_s, must_meet=number == 0)
        assert {each.name for each in folder.iterdir()} <= {"run.h5"}
        if (folder / "run.h5").exists():
            with h5py.File(folder / "run.h5") as file:
                assert file.attrs["complete"]
                assert len(file) == 200
    print(f"{left} of {kills} kills met a file that was being written")
    assert left, "no kill met a file that was being written"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_told_to_end", [False, True])
def test_kill_9_of_a_training_that_dumps_leaves_whole_captures_only(
    tmp_path: Path, is_told_to_end: bool
) -> None:
    random = np.random.default_rng()
    left, whole = 0, 0
    script = TRAINING
    if is_told_to_end:  # what SIGTERM does, but for ending
        script = script.replace("recorder.dump()", 'recorder._ending.write("SIGTERM", prove=False)')
    for number in range(5):
        delay_s = random.uniform(0.0, 0.1)
        left += kill_while_writing(script, tmp_path / "run.h5", delay_s, must_meet=number == 0)
        for path in tmp_path.iterdir():
            with Capture(path) as capture, Replay(capture) as replay:
                assert all(result.bit_exact for result in replay.run_window("recorded"))
            path.unlink()
            whole += 1
    print(f"{left} kills of 5 met a file that was being written; {whole} whole files")
    assert left, "no kill met a file that was being written"


def test_kill_9_leaves_a_whole_file_or_none_and_the_next_start_clears_up(tmp_path: Path) -> None:
    assert_whole_or_absent(tmp_path, 4)


@pytest.mark.slow
def test_kill_9_at_a_hundred_moments(tmp_path: Path) -> None:
    assert_whole_or_absent(tmp_path, 100)


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    from nanreplay.capture.temporary import replacing

    with replacing(tmp_path / "run.h5"):
        Recorder(tmp_path / "run.h5")
        Recorder(tmp_path / "{worker}.h5")
        (living,) = tmp_path.iterdir()
    foreign = tmp_path / living.name.replace(living.name.split(".")[3], "0123abcd")
    foreign.touch()
    Recorder(tmp_path / "run.h5")
    assert foreign.exists()  # of another host, and touched just now
    os.utime(foreign, (0, 0))
    Recorder(tmp_path / "other.h5")
    assert foreign.exists()
    Recorder(tmp_path / "run.h5")
    assert not foreign.exists()


FULL = """
import resource, signal, sys, warnings
sys.path.insert(0, sys.argv[2])
import injected
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
found, said = injected.run("compiled_loop", Path(sys.argv[1]) / "run.h5")
assert found == injected.run("compiled_loop", None)[0]
problem = "The capture could not be written: File too large."
assert said == ["nanreplay: step 4: loss is NaN. " + problem], said
assert not list(Path(sys.argv[1]).iterdir())
"""


def test_a_full_disk_is_one_warning_and_nothing_half_written(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    done = warm_python.run(["-c", FULL, tmp_path, here], env=environment())
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr
