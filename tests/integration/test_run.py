"""`nanreplay run`: the program is the one that `python` would run, whether or not it trains."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import warm_python
from conftest import environment

from nanreplay import Capture
from nanreplay.commands import run_command_line

Done = subprocess.CompletedProcess[str]


def python(*arguments: str, folder: Path) -> Done:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False,
        timeout=warm_python.HANGS_S,
        cwd=folder,
        env={**environment(), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip


def run(*arguments: str, folder: Path) -> Done:
    return python("-m", "nanreplay", "run", *arguments, folder=folder)


def run_warm(*arguments: str, folder: Path) -> Done:
    """The same with TensorFlow imported before."""
    arguments = ("-m", "nanreplay", "run", *arguments)
    return warm_python.run(arguments, cwd=folder, env=environment())


PROGRAMS = {
    "says_what_it_sees": """
        import sys, os
        from pathlib import Path
        print(sys.argv, __name__, __file__, Path(sys.path[0]).samefile(Path(__file__).parent),
        __builtins__ is not None)
        print(sys.modules["__main__"].__dict__ is globals(), "tensorflow" in sys.modules,
        sys.stdin.read())
    """,
    "exits": "import sys; sys.exit(7)",
    "exits_with_words": "import sys; sys.exit('no data')",
    "exits_with_nothing": "import sys; sys.exit()",
    "raises": """
        def read(name):
            raise FileNotFoundError(name)

        for name in ["a"]:
            read(name)
    """,
    "has_a_syntax_error": "def f(:\n    pass\n",
    "loops_and_generators": """
        def numbers(n):
            for i in range(n):
                yield pow(i, 2)

        total = 0
        while True:
            total += sum(numbers(3))
            if total > 9:
                break
        else:
            print("never")
        print(total, [str(i) for i in numbers(4)], next(iter("xy")), next(iter(""), "none"))
        try:
            next(iter([]))
        except StopIteration:
            print("end")
        class A:
            __hidden = 3
            def f(self):
                for i in range(2):
                    if str(i) == "1":
                        return self.__hidden + i
        print(A().f())
    """,
    "dies_of_a_signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "is_interrupted": "raise KeyboardInterrupt",
    "starts_a_process": """
        import subprocess, sys
        print(subprocess.run([sys.executable, "-c",
        "import sys; print(sys.argv, 'nanreplay' in sys.modules)"],
            capture_output=True, text=True).stdout)
    """,
    "uses_threads": """
        import threading
        seen = []
        def work(n):
            for i in range(n):
                seen.append(abs(i))
        threads = [threading.Thread(target=work, args=(100,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(len(seen), sum(seen))
    """,
    "is_a_dataclass_module": """
        from dataclasses import dataclass
        import pickle
        @dataclass
        class Point:
            x: int
        print(pickle.loads(pickle.dumps(Point(3))))
    """,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_as_python_runs_it(name: str, tmp_path: Path) -> None:
    text = PROGRAMS[name]
    script = tmp_path / "program.py"
    script.write_text(
        text if not text.startswith("\n") else "\n".join(line[8:] for line in text.splitlines())
    )
    plain, recorded = (
        python("program.py", "-x", "--epochs", "3", folder=tmp_path),
        run("program.py", "-x", "--epochs", "3", folder=tmp_path),
    )
    assert recorded.stdout == plain.stdout
    assert recorded.returncode == plain.returncode
    lines = recorded.stderr.splitlines()
    if not recorded.returncode:  # it ran to its end: what was asked for was not done
        assert lines.pop() == (
            "nanreplay: nothing was recorded: the program did not import TensorFlow in this "
            "process."
        )
    assert lines[-1:] == plain.stderr.splitlines()[-1:]
    assert "nanreplay" not in "".join(lines)
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == [
        "program.py"
    ]


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("w.assign_sub(0.1 * slope(w))", "takes a gradient with a tape and sets variables"),
        ("model.fit(x, y, epochs=1, verbose=0)", ""),
        ("Recorder('own.h5').wrap(lambda: w.assign_sub(0.1 * slope(w)))()", ""),
    ],
)
def test_a_training_by_hand_that_is_not_seen_is_told_at_the_end(
    setting: str, line: str, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(
        "import keras, tensorflow as tf\nfrom nanreplay import Recorder\n"
        "x, y, w = tf.ones((4, 2)), tf.ones((4, 1)), tf.Variable(tf.ones((2, 1)))\n"
        "slope = lambda w: tf.transpose(x) @ (x @ w - y)\n"
        "model = keras.Sequential([keras.layers.Dense(1)])\nmodel.compile('sgd', 'mse')\n"
        f"for _ in range(3):\n    {setting}\n"
    )
    done = run_warm("train.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "nanreplay" in line]
    assert len(told) == bool(line)
    assert line in "".join(told)


def test_the_traceback_of_a_program_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "def f():\n    for i in range(3):\n        int('x')\n\nf()\n"
    )
    assert run("program.py", folder=tmp_path).stderr == python("program.py", folder=tmp_path).stderr


def test_a_module_runs_as_with_m(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "import sys\nfrom package.other import f\nprint(sys.argv[1:], __name__, __package__, f())\n"
    )
    (package / "other.py").write_text(
        "def f():\n    for i in range(3):\n        print(i)\n    return __file__\n"
    )
    plain, recorded = (
        python("-m", "package", "a", folder=tmp_path),
        run("-m", "package", "a", folder=tmp_path),
    )
    assert (recorded.stdout, recorded.returncode) == (plain.stdout, plain.returncode)
    assert recorded.stderr.startswith("nanreplay: nothing was recorded: ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "Give a script, or -m MODULE"),
        (("missing.py",), "Cannot run missing.py: No such file or directory."),
        (("folder",), "Cannot run folder: it is a folder. Give a script such as folder/train.py."),
        (
            ("-m", "no_such_module"),
            "Cannot run -m no_such_module: there is no module of that name.",
        ),
        (("--window", "0", "program.py"), "--window"),
        (("--memory-limit", "much", "program.py"), "memory_limit"),
        (("--keyframe-every", "often", "program.py"), "neither a number of steps nor 'auto'"),
        (("-o", "no/such/folder/run.h5", "program.py"), "no/such/folder"),
        (("--no-such-option", "program.py"), "No such option"),
    ],
)
def test_bad_input_is_told_in_one_line(
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "program.py").write_text("print('runs')\n")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # it puts the program's folder first
    code = run_command_line(["run", *arguments])
    printed, told = capfd.readouterr()
    assert code == 2, told
    assert says in told
    assert len(told.strip().splitlines()) <= 4  # click adds how the command is used
    assert printed == ""


def test_each_training_of_a_process_has_a_file(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import numpy as np, keras\n"
        "for name in ('one', 'two'):\n"
        "    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1, "
        "name=name)])\n"
        "    model.compile('sgd', 'mse')\n"
        "    x = np.ones((12, 3), 'float32')\n"
        "    x[5] = np.inf\n"
        "    if name == 'one':\n"
        "        model.fit(x, x[:, :1], batch_size=4, shuffle=False, verbose=0)\n"
        "    else:\n"
        "        for start in range(0, 12, 4):\n"
        "            model.train_on_batch(x[start : start + 4], np.ones((4, 1), 'float32'))\n"
    )
    done = run_warm("--on-nan", "continue", "-o", "nan.h5", "program.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["nan.1.h5", "nan.h5"]
    for name, layer in (("nan.h5", "one"), ("nan.1.h5", "two")):
        with Capture(tmp_path / name) as capture:
            assert capture.incident.step == 1
            assert any(layer in path for path in capture.variables()["path"])


def test_an_interrupted_training_leaves_its_window(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import os, signal, numpy as np, keras\n"
        "class Ends(keras.callbacks.Callback):\n"
        "    def on_train_batch_end(self, batch, logs=None):\n"
        "        if batch == 3:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])\n"
        "model.compile('sgd', 'mse')\n"
        "model.optimizer.build(model.trainable_variables)\n"
        "model.fit(np.ones((40, 3)), np.ones((40, 1)), batch_size=4, verbose=0, "
        "callbacks=[Ends()])\n"
    )
    done = run_warm("program.py", folder=tmp_path)
    assert done.returncode == -signal.SIGTERM
    with Capture(tmp_path / "run.h5") as capture:
        assert capture.incident.trigger.name == "SIGTERM"


def test_a_capture_whose_error_the_program_catches_is_named(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import numpy as np, keras\n"
        "model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])\n"
        "model.compile('sgd', 'mse')\n"
        "for start in range(3):\n"
        "    try:\n"
        "        model.train_on_batch(np.full((4, 3), np.inf), np.ones((4, 1)))\n"
        "    except Exception:\n"
        "        continue\n"
    )
    done = run_warm("program.py", folder=tmp_path)
    assert done.returncode == 0
    assert "nanreplay: step 0: loss is" in done.stderr
    assert "Capture: run.h5" in done.stderr
