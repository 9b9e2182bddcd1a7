"""docs/notebook.ipynb: from a failing `fit` to the mended one, in a kernel as Jupyter runs it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_notebook_shows_what_its_cells_show_today() -> None:
    check = [sys.executable, str(ROOT / "docs" / "run_notebook.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
