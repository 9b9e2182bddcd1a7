"""A fix as a patch: what `git apply` makes of it, and when there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nanreplay.findings import FixResult
from nanreplay.report.fix_patch import diff_of, group_of, patch_of, what_it_does
from nanreplay.whatif.fix_names import NAMES

CODE = "import x\n\n\ndef loss(p):\n    return -tf.math.log(p)"


def fix_of(file: str, old: str = "return -tf.math.log(p)") -> FixResult:
    new = "return -tf.math.log(p + 1e-7)"
    edits = ({"file": file, "line": 5, "old": old, "new": new},)
    return FixResult("epsilon", {"value": 1e-7}, True, (0, 1), code=new, edits=edits)


@pytest.mark.parametrize("end", ["", "\n", "\nmore = 1\n"], ids=["no newline", "newline", "more"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["unix", "windows"])
def test_git_applies_the_patch(tmp_path: Path, end: str, newline: str) -> None:
    script = tmp_path / "train.py"
    script.write_bytes((CODE + end).replace("\n", newline).encode())
    patch = patch_of(fix_of("train.py"), str(tmp_path / "run.h5"))
    assert patch is not None
    (tmp_path / "fix.patch").write_bytes(patch.encode())
    subprocess.run(["git", "apply", "fix.patch"], cwd=tmp_path, check=True, timeout=60)
    expected = (CODE + end).replace("log(p)", "log(p + 1e-7)").replace("\n", newline)
    assert script.read_bytes().decode() == expected


def test_there_is_no_patch_of_a_line_that_has_changed_or_a_file_that_is_gone(
    tmp_path: Path,
) -> None:
    capture = str(tmp_path / "run.h5")
    assert patch_of(fix_of("train.py"), capture) is None
    (tmp_path / "train.py").write_text("pass\n" * 9)
    assert patch_of(fix_of("train.py"), capture) is None
    lr = FixResult("lr", {"factor": 0.1}, True, (0, 1), code="Adam(learning_rate=1e-4)")
    assert patch_of(lr, capture) is None


def test_the_change_says_where_what_goes_and_what_comes() -> None:
    lines = [f"{line.sign} {line.text}" for line in diff_of(fix_of("/home/me/train.py"))]
    assert lines == [
        "@ train.py:5",
        "- return -tf.math.log(p)",
        "+ return -tf.math.log(p + 1e-7)",
    ]
    lr = FixResult("lr", {"factor": 0.1}, True, (0, 1), code="Adam(learning_rate=1e-4)")
    assert [line.sign for line in diff_of(lr)] == ["@", "+"]


@pytest.mark.parametrize("name", NAMES)
def test_every_fix_has_a_group_and_a_line_that_says_what_it_does(name: str) -> None:
    assert what_it_does(name)
    assert group_of(f"{name}=1") in ("code", "data", "optimizer")
