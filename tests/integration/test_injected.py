"""An error anywhere inside the recorder is one warning, and the training goes on with the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import injected
import pytest
from injected import Injector, run

from nanreplay import Capture, Recorder

SOME = [
    "program/watch.py:build_watch", "program/observe.py:Observer._mark", "recorder/session.py:Session.add_program",
    "recorder/session.py:Session._check", "recorder/dump.py:gather", "capture/writer.py:CaptureWriter.batch",
]  # fmt: skip


def assert_harmless(scenario: str, folder: Path, names: list[str] | None, error: BaseException) -> None:
    bare, _ = run(scenario, None)
    functions = injected.functions_of(scenario, folder / "all.h5")
    for index, name in enumerate(names or functions):
        path, injector = folder / f"{index}.h5", Injector(functions[name], error)
        found, said = run(scenario, path, injector)
        assert injector.happened, name
        assert found == bare, name
        reports = [each for each in said if f"Please report this: {type(error).__name__}" in each]
        assert len(reports) == 1 or path.exists() or isinstance(error, MemoryError), (name, said)
        assert len(said) <= 2, (name, said)
        if path.exists():
            Capture(path).close()
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("scenario", ["compiled_loop", "fit"])
def test_an_error_inside_the_recorder_never_reaches_the_training(tmp_path: Path, scenario: str) -> None:
    assert_harmless(scenario, tmp_path, SOME[:2] if scenario == "fit" else SOME, RuntimeError("a bug"))


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("a bug"), MemoryError()], ids=["bug", "memory"])
@pytest.mark.parametrize("scenario", injected.SCENARIOS)
@pytest.mark.timeout(3000)
def test_an_error_in_any_function_of_the_recorder(tmp_path: Path, scenario: str, error: Exception) -> None:
    assert_harmless(scenario, tmp_path, None, error)


def test_ctrl_c_inside_the_recorder_passes_through(tmp_path: Path) -> None:
    functions = injected.functions_of("eager_loop", tmp_path / "all.h5")
    for name in ("recorder/session.py:Session._check", "capture/writer.py:CaptureWriter.batch"):
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


def kill_while_writing(path: Path, delay_s: float) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(delay_s)
        process.kill()


def assert_whole_or_absent(folder: Path, kills: int) -> None:
    import h5py
    import numpy as np

    random = np.random.default_rng()
    left = 0
    for _ in range(kills):
        kill_while_writing(folder / "run.h5", random.uniform(0.0, 0.15))
        left += len(list(folder.glob(".*.tmp")))
        Recorder(folder / "run.h5")  # the next start
        assert {path.name for path in folder.iterdir()} <= {"run.h5"}
        if (folder / "run.h5").exists():
            with h5py.File(folder / "run.h5") as file:
                assert file.attrs["complete"]
                assert len(file) == 200
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
assert said == ["nanreplay: step 4: loss is NaN. The capture could not be written: File too large."], said
assert not list(Path(sys.argv[1]).iterdir())
"""


def test_a_full_disk_is_one_warning_and_nothing_half_written(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path), here], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Exception ignored" not in done.stderr
