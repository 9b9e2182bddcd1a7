"""Tensors of a step by name: in a session, in a file for numpy, in a script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nanreplay.commands import run_command_line

SAMPLES = Path(__file__).parents[2] / "sample_runs"
LOG_OF_ZERO = str(SAMPLES / "log_of_zero.h5")
CODE = """
logits = trace["sequential_1/species_1/BiasAdd:0"]
p = trace["sequential_1/species_1/Softmax"]
assert p.shape == logits.shape == (32, 3)
assert p[18, 0] == 0.0
assert np.isinf(trace[report.findings.origin.op_name]).sum() == 2
assert trace["sequential/species/kernel"].shape == (16, 3)
assert (trace["batch[0]"] == batch()["0"]).all()
assert np.isfinite(at(11)[report.findings.origin.op_name]).all()
trace["sequential_1/species_1/Softmaxx:0"]
"""


def test_a_session_has_the_tensors_of_the_step_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["shell", LOG_OF_ZERO, "-c", CODE]) == 1
    error = capsys.readouterr().err
    assert "Step 12 has no tensor 'sequential_1/species_1/Softmaxx:0'. Did you mean" in error
    assert 'trace["sequential_1/species_1/Softmaxx:0"]' in error  # the line that raised
    assert "commands/shell.py" not in error


def test_a_session_without_ipython_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "IPython", None)
    assert run_command_line(["shell", LOG_OF_ZERO]) == 2
    assert "pip install 'nanreplay[shell]'" in capsys.readouterr().err


def test_a_tensor_is_written_for_numpy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "log.npy"
    arguments = ["export", LOG_OF_ZERO, "--npy", str(target), "--tensor"]
    assert run_command_line([*arguments, "compile_loss/cross_entropy/Log"]) == 0
    array = np.load(target)
    assert array.shape == (32, 3)
    assert array[18, 0] == -np.inf
    assert "compile_loss/cross_entropy/Log of step 12, float32 [32, 3]" in capsys.readouterr().out
    assert run_command_line([*arguments, "compile_loss/cross_entropy/Log"]) == 2
    assert "--force" in capsys.readouterr().err
    assert run_command_line(["export", LOG_OF_ZERO, "--npy", str(target)]) == 2
    assert "go together" in capsys.readouterr().err
