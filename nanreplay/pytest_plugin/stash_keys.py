"""What the plugin's modules keep in pytest's stashes, and the model that a run was given.

pytest loads this module in every run, so it imports pytest alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from nanreplay.pytest_plugin.collected import ReplayCase
    from nanreplay.recorder import Recorder

NAMED = pytest.StashKey[list[Path]]()
"""Files and folders that `--nanreplay` names, absolute."""
CAPTURES = pytest.StashKey[list[Path]]()
"""Those files, and the HDF5 files in those folders."""
CASES: pytest.StashKey[list[ReplayCase]] = pytest.StashKey()
"""What the markers of a test ask for."""
RECORDER: pytest.StashKey[Recorder] = pytest.StashKey()
"""The recorder of a test that asked for one."""
SHOWN = pytest.StashKey[dict[str, str]]()
"""What the end of the run says of a failure: `annotation`, `kept`."""


def model_of(config: pytest.Config) -> str | None:
    """The function that makes the user's current model, when one was named."""
    return config.getoption("nanreplay_model") or config.getini("nanreplay_model") or None
