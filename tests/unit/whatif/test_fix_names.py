"""Every fix is where people look for it: in the documents, and in the help of `whatif`."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanreplay.commands.whatif import command
from nanreplay.whatif.fix_names import NAMES

DOCUMENT = (Path(__file__).parents[3] / "docs" / "fixes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_fix_is_told_of(name: str) -> None:
    table, _, costs = DOCUMENT.partition("\n## What a fix costs\n")
    assert f"\n| `{name}` |" in table
    shares = [row.split("|")[1] for row in costs.splitlines() if row.startswith("| `")]
    assert f"`{name}`" in " ".join(shares)
    assert command.help is not None
    assert name in command.help.replace(",", " ").replace(".", " ").split()
