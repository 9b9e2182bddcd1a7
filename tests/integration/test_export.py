"""A failure becomes a test: it fails with the code of today and passes once the code is fixed."""

from __future__ import annotations

import ast
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import environment

from nanreplay.commands import run_command_line

SAMPLES = Path(__file__).parents[2] / "sample_runs"
NAME = "step_12_log_of_zero_in_loss"
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the training code of a project."""
    shutil.copy(Path(__file__).with_name("today_models.py"), tmp_path / "training_of_today.py")
    return tmp_path


def mend(project: Path) -> None:
    """Give the loss of a project its epsilon."""
    source = (project / "training_of_today.py").read_text()
    (project / "training_of_today.py").write_text(
        source.replace("tf.math.log(probabilities)", "tf.math.log(probabilities + 1e-7)")
    )


def test_the_module_reads_well_and_fails_today(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--pytest",
        str(project / "tests"),
        "--model",
        f"{project / 'training_of_today.py'}:flowers",
        "--json",
    ]
    assert run_command_line(["export", str(SAMPLES / "log_of_zero.h5"), *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    module = project / "tests" / f"test_{NAME}.py"
    assert (told["module"], told["passes_today"]) == (str(module), False)
    assert sorted(path.name for path in (project / "tests").iterdir()) == [
        f"{NAME}.h5",
        module.name,
    ]
    text = module.read_text()
    (function,) = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    assert function.name == f"test_{NAME}"
    said = " ".join((ast.get_docstring(function) or "").split())
    assert "step 12 · loss · `Log` of 0.0 at [18, 0] (sample 18 of the batch) gave -inf" in said
    assert "Cause: log of zero." in said
    assert max(map(len, text.splitlines())) <= 140
    assert str(project) not in text  # the project may move
    with pytest.raises(AssertionError, match="still non-finite"):
        runpy.run_path(str(module))[function.name]()


@pytest.mark.slow
def test_pytest_fails_until_the_code_is_fixed(project: Path, command: Command) -> None:
    for model in ("training_of_today:flowers", "training_of_today.py:flowers"):
        child = command(
            "export",
            SAMPLES / "log_of_zero.h5",
            "--pytest",
            "tests",
            "--model",
            model,
            "--force",
            cwd=project,
        )
        assert child.returncode == 0, child.stderr
        assert "the test fails." in child.stdout
    pytest_run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    before = subprocess.run(
        pytest_run, cwd=project, capture_output=True, text=True, check=False, env=environment()
    )
    assert before.returncode == 1, before.stdout
    assert "1 failed" in before.stdout
    assert "still non-finite" in before.stdout
    mend(project)
    after = subprocess.run(
        pytest_run, cwd=project, capture_output=True, text=True, check=False, env=environment()
    )
    assert after.returncode == 0, after.stdout


@pytest.mark.slow
def test_a_divergence_is_tested_from_its_beginning(tmp_path: Path, command: Command) -> None:
    (tmp_path / "houses.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(SAMPLES)!r})\n"
        "import keras\n\n\n"
        "def build(rate: float = 0.1) -> keras.Model:\n"
        '    price = keras.layers.Dense(1, name="price")\n'
        '    model = keras.Sequential([keras.Input((3,)), price], name="sequential")\n'
        '    model.compile(keras.optimizers.SGD(rate), "mse")\n'
        "    return model\n\n\n"
        "def gentle() -> keras.Model:\n"
        "    return build(1e-7)\n"
    )
    for model, outcome in (("houses:build", "fails"), ("houses:gentle", "passes")):
        arguments = ["--pytest", "tests", "--model", model, "--force"]
        child = command("export", SAMPLES / "learning_rate_too_high.h5", *arguments, cwd=tmp_path)
        assert child.returncode == 0, child.stderr
        assert f"the test {outcome}." in child.stdout, child.stdout


def test_a_missing_model_leaves_nothing(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = project / "tests"
    arguments = [
        "export",
        str(SAMPLES / "division_by_zero.h5"),
        "--pytest",
        str(folder),
        "--model",
        "no_such_module:build",
    ]
    assert run_command_line(arguments) == 2
    assert "no_such_module" in capfd.readouterr().err
    assert not folder.exists()
