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
def test_each_piece_of_advice_is_verified_on_its_recording(usual_list: Any) -> None:
    for advice, report in usual_list.rows():
        assert report.causes[0].kind != "other", advice
        assert report.fixes[0].prevents is True, (advice, report.fixes[0].note)
        assert report.fixes[0].code, advice
