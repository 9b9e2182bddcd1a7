"""docs/usual-list.md holds what the sample runs give."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def usual_list() -> Any:
    spec = importlib.util.spec_from_file_location("usual_list", DOCS / "usual_list.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_the_page_has_every_line_of_the_list(usual_list: Any) -> None:
    text = (DOCS / "usual-list.md").read_text(encoding="utf-8")
    assert [
        advice.today
        for advice in usual_list.LIST
        if f"| {advice.today} | [{advice.run}]" not in text
    ] == []


@pytest.mark.slow
def test_the_page_says_what_the_recordings_give_today(usual_list: Any) -> None:
    text = (DOCS / "usual-list.md").read_text(encoding="utf-8")
    for advice, report in usual_list.rows():
        assert report.causes[0].kind != "other", advice
        assert any(fix.prevents and fix.code for fix in report.fixes), advice
        outcomes = [usual_list._outcome(fix) for fix in report.fixes if "+" not in fix.name]
        row = next(line for line in text.splitlines() if f"| {advice.today} |" in line)
        assert [outcome for outcome in outcomes if outcome not in row] == [], advice
