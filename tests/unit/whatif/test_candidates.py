"""Which fixes are tried for which cause."""

from __future__ import annotations

from typing import get_args

import pytest

from nanreplay.findings import Cause, CauseKind
from nanreplay.whatif.edits import FITTING, LAST_RESORT, candidates
from nanreplay.whatif.fix_names import NAMES, check_fix

KINDS = get_args(CauseKind)


def test_every_cause_has_its_fixes() -> None:
    assert sorted(FITTING) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_fixes_that_exist_each_once(kind: CauseKind) -> None:
    found = candidates([Cause(kind, 0.9, "")])
    assert len(found) == len(set(found))
    assert all(check_fix(each)[0] in NAMES for each in found)


def test_usual_advice_comes_after_what_fits() -> None:
    found = candidates([Cause("log_of_zero", 0.9, ""), Cause("data_outlier", 0.5, "")])
    assert found[0] == "epsilon"
    assert found.index("clip_data") < found.index("clipnorm=1.0") < found.index("lr=0.1")
    assert found[-1] == LAST_RESORT


@pytest.mark.parametrize("causes", [[], [Cause("hardware_like", 0.9, "")]])
def test_nothing_is_tried_where_nothing_is_to_be_fixed(causes: list[Cause]) -> None:
    assert candidates(causes) == []
