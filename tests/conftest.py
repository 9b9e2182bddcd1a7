"""Fixtures that every test may use."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import warm_python
from sample_contents import sample_contents

os.environ.pop("GITHUB_ACTIONS", None)  # commands annotate there, and tests look at what they say
# Traced graphs fill gigabytes with small objects: large pages take a twenty-fifth off the processor
# time. glibc reads this as a process starts, so it serves the workers of xdist and what they start.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
ROOT = Path(__file__).parents[1]
FROZEN_BEFORE = pytest.StashKey[str]()
"""The module of tests that last began."""
MANY_OBJECTS = 1_000_000
"""So many new ones, some 200 MB, are looked through before the next test."""
Command = Callable[..., "subprocess.CompletedProcess[str]"]
TrainedHere = Callable[[str], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out trainings in bfloat16 where oneDNN is held to a processor without it.

    TensorFlow asks the real processor whether it has bfloat16, oneDNN this variable, and the first
    such op ends the process. A processor that really is without it is no trouble.
    """
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in ("SSE41", "AVX", "AVX2", "AVX2_VNNI"):
        left_out = pytest.mark.skip(reason="TensorFlow aborts: bfloat16 with ONEDNN_MAX_CPU_ISA")
        for item in items:
            if "mixed_bfloat16" in item.name:
                item.add_marker(left_out)


def pytest_configure() -> None:
    """Collect garbage between tests and not within them, and wait for no disk.

    Tracing a step makes so many objects that a fifth of the processor time of a training went into
    looking for cycles among them, and all of them live as long as the graph. A capture is synced
    twice, which takes a disk some 15 ms; `test_temporary.py` looks at what is synced, and when.
    """
    gc.disable()
    os.fsync = lambda descriptor: None


def pytest_collection_finish() -> None:
    """Wait for no dataset."""
    if "tensorflow" in sys.modules:  # some test module trains
        warm_python.leave_datasets_untuned()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Take what the modules of tests before this one left out of garbage collection.

    `keras.backend.clear_session` and many tests collect, and each time walk over a million objects
    that TensorFlow's import made, and over the graphs of all trainings so far, which TensorFlow
    keeps. What is frozen here has outlived the fixtures of its module: it stays for ever.
    """
    module = item.nodeid.partition("::")[0]
    if item.config.stash.get(FROZEN_BEFORE, None) != module:
        item.config.stash[FROZEN_BEFORE] = module
        gc.collect()
        gc.freeze()
    elif gc.get_count()[0] > MANY_OBJECTS or is_listening():
        gc.collect()
    forget_listeners()


class Nobody:
    """Listens to no signal."""


def is_listening() -> bool:
    """Whether a recorder of an earlier test still listens to signals."""
    signals = sys.modules.get("nanreplay.recorder.signals")
    return signals is not None and bool(signals._handlers)


def forget_listeners() -> None:
    """Put the handlers of signals back where recorders that are gone left theirs."""
    if is_listening():
        sys.modules["nanreplay.recorder.signals"].leave(Nobody())


@pytest.fixture(scope="session")
def command() -> Command:
    """Run `python -m nanreplay ...` in a process with a warm TensorFlow."""

    def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return warm_python.run(["-m", "nanreplay", *arguments], env=environment(), **options)

    return run


@pytest.fixture(scope="session")
def cold_command() -> Command:
    """Run `python -m nanreplay ...` in a process that has imported nothing, as a shell does."""

    def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nanreplay", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=warm_python.HANGS_S,
            env=environment(),
            **options,
        )

    return run


def environment() -> dict[str, str]:
    """The environment of a child process that can import nanreplay, with no colours."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"}


def plugin_arguments() -> list[str]:
    """Makes a child pytest load the plugin where the installed package does not name it yet."""
    is_installed = any(entry.name == "nanreplay" for entry in entry_points(group="pytest11"))
    return [] if is_installed else ["-p", "nanreplay.pytest_plugin"]


@pytest.fixture(scope="session")
def recorded_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nan.h5, healthy.h5, python.h5 and unsafe.h5, trained in a process of their
    own."""
    folder = tmp_path_factory.mktemp("runs")
    script = ROOT / "tests" / "integration" / "recorded_runs.py"
    warm_python.run([script, folder], check=True, env=environment())
    return folder


@pytest.fixture(scope="session")
def regenerate() -> Any:
    """The module that trains the sample runs."""
    path = ROOT / "sample_runs" / "regenerate.py"
    spec = importlib.util.spec_from_file_location("regenerate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def trained_here(regenerate: Any, tmp_path_factory: pytest.TempPathFactory) -> TrainedHere:
    """Trains a sample run anew, once, and returns its capture.

    Tests that ask for equal bits use this one: the committed capture has those of the processor
    that made it, and another processor adds in another order.
    """

    @cache
    def train(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        shutil.copy(regenerate.FOLDER / f"{name}.py", folder)
        arguments = ["-c", regenerate.RUN, f"{name}.py"]
        warm_python.run(arguments, check=True, cwd=folder, env=environment())
        return folder / f"{name}.h5"

    return train


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """A capture in good order whose program is no graph, written without TensorFlow."""
    from nanreplay.capture import write_capture

    write_capture(tmp_path / "made-up.h5", sample_contents())
    return tmp_path / "made-up.h5"
