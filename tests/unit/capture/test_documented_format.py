"""The example in docs/capture-format.md reads a capture with h5py alone, and the format's parts are
all named there."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from nanreplay.capture.format import EXTENSION_DTYPES, TIMELINE_COLUMNS, TIMELINE_MATRICES
from nanreplay.records import Incident, OpInfo, Signature, VariableInfo

DOCUMENT = (Path(__file__).parents[3] / "docs" / "capture-format.md").read_text(encoding="utf-8")


def test_the_example_runs_without_nanreplay(made_up: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert "nanreplay" not in re.findall(r"import (\w+)", example)
    (tmp_path / "example.py").write_text(example)
    child = subprocess.run(
        [sys.executable, tmp_path / "example.py", made_up],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stderr == ""
    assert child.stdout.startswith(
        "step 4 {'what': 'loss', 'name': 'loss', 'value': 'nan'}\n0 dense/kernel [3, 2] trainable\n"
    )


@pytest.mark.parametrize(
    "name",
    [each.name for kind in (Signature, OpInfo, VariableInfo, Incident) for each in fields(kind)],
)
def test_every_field_is_documented(name: str) -> None:
    assert f"`{name}`" in DOCUMENT


@pytest.mark.parametrize("name", [*EXTENSION_DTYPES, *TIMELINE_COLUMNS, *TIMELINE_MATRICES])
def test_every_name_is_documented(name: str) -> None:
    assert f"`{name}`" in DOCUMENT
