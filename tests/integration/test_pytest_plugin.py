"""The pytest plugin, as the reader of a test run sees it: in processes of their own, on real
trainings."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import h5py
import pytest
import warm_python
from conftest import ROOT, environment, plugin_arguments

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.xdist_group("plugin")  # one worker runs the project
PROJECT = ROOT / "tests" / "integration" / "plugin_project"
LOG_OF_ZERO = ROOT / "sample_runs" / "log_of_zero.h5"


@dataclass(frozen=True)
class Run:
    """A test run that has ended."""

    workers: int
    folder: Path
    child: subprocess.CompletedProcess[str]
    cases: dict[str, ElementTree.Element]
    """Test cases of its JUnit XML by name."""

    def outcome(self, test: str) -> str:
        """`passed`, or the kind of the first thing that was reported."""
        kinds = [
            child.tag for child in self.cases[test] if child.tag in ("failure", "error", "skipped")
        ]
        return kinds[0] if kinds else "passed"

    def text(self, test: str) -> str:
        """What the report of a test that did not pass says."""
        return next(
            child.text or "" for child in self.cases[test] if child.tag in ("failure", "error")
        )


@pytest.fixture(
    scope="module",
    params=[0, pytest.param(2, marks=pytest.mark.slow)],
    ids=["in one process", "with two workers"],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of the project, on GitHub, where captures are tests and kept captures go to a
    folder."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(PROJECT / "train.py", folder / "train.py")
    shutil.copy(PROJECT / "trainings.py", folder / "test_trainings.py")
    (folder / ".captures").mkdir()
    shutil.copy(LOG_OF_ZERO, folder / ".captures" / "log_of_zero.h5")
    (folder / ".captures" / "damaged.h5").write_bytes(LOG_OF_ZERO.read_bytes()[:3000])
    h5py.File(folder / ".captures" / "weights.h5", "w").close()
    (folder / "captures").symlink_to(".captures")
    options = "-W error --strict-markers --nanreplay .captures --nanreplay-keep kept"
    asked = f"{options} --junit-xml junit.xml".split()
    arguments = ["-m", "pytest", *plugin_arguments(), "-n", str(request.param), *asked]
    env = {
        **environment(),
        "GITHUB_ACTIONS": "true",
        "GITHUB_WORKSPACE": str(folder),
        "COLUMNS": "200",
    }
    child = warm_python.run(arguments, cwd=folder, env=env)
    cases = ElementTree.parse(folder / "junit.xml").findall(".//testcase")
    named = {
        f"{case.get('classname')}.{case.get('name')}".removeprefix("test_trainings."): case
        for case in cases
    }
    return Run(request.param, folder, child, named)


def test_a_test_passes_while_its_training_is_finite(run: Run) -> None:
    assert run.outcome("test_a_finite_training_passes") == "passed"
    assert run.outcome("test_a_loop[1.0]") == "passed"


@pytest.mark.parametrize(
    "test", ["test_a_training_that_turns_nan_fails", "test_a_swallowed_error_fails"]
)
def test_a_test_fails_when_its_training_turns_nan_even_when_the_error_is_swallowed(
    test: str, run: Run
) -> None:
    assert run.outcome(test) == "failure"
    text = run.text(test)
    assert text.startswith("step 1 · loss · `Log` of 0.0 at [2, ")
    assert text.splitlines()[-1] == "train.py:29: log of zero"
    assert "Traceback" not in text
    assert "nanreplay/recorder" not in text


def test_what_the_test_raised_afterwards_is_told(run: Run) -> None:
    assert "\nnote: Then the test raised AssertionError: the accuracy is low\n" in run.text(
        "test_a_swallowed_error_fails"
    )


def test_a_loop_is_recorded_too(run: Run) -> None:
    assert run.text("test_a_loop[0.0]").startswith("step 0 · loss · `Log` of 0.0 at [0] gave -inf")


def test_an_exception_that_is_no_nan_is_left_to_the_test(run: Run) -> None:
    assert run.outcome("test_an_exception_of_the_step_is_its_own") == "passed"


def test_captures_are_kept_under_names_that_no_two_tests_or_workers_share(run: Run) -> None:
    kept = sorted(path.name for path in (run.folder / "kept").iterdir())
    listed = [line.split() for line in run.child.stdout.splitlines() if line.startswith("kept/")]
    failed = [
        test
        for test in run.cases
        if "captures" not in test and "case" not in test and run.outcome(test) == "failure"
    ]
    assert sorted(test for _, test in listed) == sorted(
        f"test_trainings.py::{test}" for test in failed
    )
    assert {file.removeprefix("kept/") for file, _ in listed} < set(kept)
    assert len(kept) == len(failed) + 2  # and that of the exception, and the one on demand
    assert all(
        (name.split(".")[-2].endswith(("-gw0", "-gw1"))) == bool(run.workers) for name, _ in listed
    )


def test_a_capture_of_a_folder_is_a_test_that_fails_while_the_failure_is_there(run: Run) -> None:
    name = ".captures.log_of_zero.h5.replay"
    assert run.outcome(name) == "failure"
    assert run.text(name).startswith(
        "step 12 · loss · `Log` of 0.0 at [18, 0] (sample 18 of the batch) gave -inf"
    )


def test_a_damaged_capture_is_an_error_of_one_line_and_a_foreign_file_is_left_alone(
    run: Run,
) -> None:
    name = ".captures.damaged.h5.replay"
    assert run.outcome(name) == "error"
    assert len(run.text(name).strip().splitlines()) == 1
    assert not [case for case in run.cases if "weights" in case]


def test_a_marked_case_passes_when_todays_code_is_finite_and_fails_at_its_line_when_not(
    run: Run,
) -> None:
    fixed, broken = (
        "test_a_fixed_case_passes_and_its_body_runs",
        "test_a_case_that_is_not_fixed_fails_before_its_body",
    )
    assert (run.outcome(fixed), run.outcome(broken)) == ("passed", "failure")
    assert (run.folder / "fixed-body-ran").exists()
    assert not (run.folder / "broken-body-ran").exists()
    assert "train.py:29: log of zero" in run.text(broken)


def test_without_a_model_a_case_is_what_was_recorded(run: Run) -> None:
    assert (
        run.outcome("test_a_recorded_failure_is_there_as_recorded") == "skipped"
    )  # JUnit's word for an expected failure


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("test_a_missing_case_is_an_error", "nope.h5: no such file."),
        ("test_an_option_without_a_model_is_an_error", "nanreplay: allow_missing needs a model"),
        ("test_a_model_that_is_not_there_is_an_error", "train has no 'no_such_function'."),
    ],
)
def test_what_cannot_be_replayed_is_an_error_of_one_line(test: str, said: str, run: Run) -> None:
    assert run.outcome(test) == "error"
    assert said in run.text(test)
    assert len(run.text(test).strip().splitlines()) == 1


def test_github_shows_each_failure_at_its_line_of_code(run: Run) -> None:
    annotations = [line for line in run.child.stdout.splitlines() if line.startswith("::error ")]
    at_line = [
        line
        for line in annotations
        if line.startswith("::error file=train.py,line=29,title=log of zero (kept/")
    ]
    assert len(at_line) == 2
    assert sum("test_trainings.py,line=" in line for line in annotations) == 1
    assert len(annotations) == len([line for line in run.cases if run.outcome(line) == "failure"])


# Runs without TensorFlow


@pytest.fixture
def bare(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """Run pytest with this plugin and no others."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    return lambda *given: pytester.runpytest_subprocess(
        "-p", "nanreplay.pytest_plugin", *given, timeout=warm_python.HANGS_S
    )


def test_a_run_that_asks_for_nothing_imports_nothing(
    bare: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(
        """
        import sys
        def test_modules():
            heavy = {"tensorflow", "keras", "h5py", "pandas", "numpy", "click", "rich"}
            assert not heavy & {name.partition(".")[0] for name in sys.modules}
            assert sorted(name for name in sys.modules if name.startswith("nanreplay")) == [
                "nanreplay", "nanreplay.notebook",
                "nanreplay.pytest_plugin", "nanreplay.pytest_plugin.stash_keys",
            ]
        """
    )
    bare("-W", "error", "--strict-markers").assert_outcomes(passed=1)


def test_the_marker_and_the_fixture_explain_themselves(
    bare: Callable[..., pytest.RunResult],
) -> None:
    bare("--markers").stdout.fnmatch_lines(
        "@pytest.mark.nanreplay(capture, [*], model=None, [*][*]options): fail while *"
    )
    bare("--fixtures").stdout.fnmatch_lines("nan_recorder -- *")


def test_a_path_that_is_not_there_is_a_usage_error_of_one_line(
    bare: Callable[..., pytest.RunResult],
) -> None:
    result = bare("--nanreplay", "nowhere")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = filter(None, [*result.outlines, *result.errlines])
    assert line.endswith("nowhere: no such file or folder.")


def test_a_named_file_that_is_no_capture_is_an_error(
    bare: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    h5py.File(pytester.path / "weights.h5", "w").close()
    result = bare("--nanreplay", "weights.h5")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        "nanreplay: *weights.h5: an HDF5 file, but not a nanreplay capture. *"
    )


def test_a_folder_without_captures_is_said(
    bare: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    pytester.mkdir("captures")
    bare("--nanreplay", "captures").stdout.fnmatch_lines(
        "nanreplay: 0 files in captures, replayed with the recorded program"
    )
