"""docs/five-minutes.md: every command of the page gives what the page shows."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_page_shows_what_its_commands_print_today() -> None:
    check = [sys.executable, str(ROOT / "docs" / "five_minutes.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
