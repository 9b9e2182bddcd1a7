"""Mutated captures: one clear error or the numbers; no traceback, no hang, no other file.
`NANREPLAY_FUZZ=N` sets how many."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import pytest
from fuzzing import run_cases
from mutations import BYTES, EDITS
from sample_contents import sample_contents

from nanreplay.capture import write_capture

FAST = 150
"""Cases of every run of the tests; the slow test goes on behind them."""


def fuzz(first: int, count: int, folder: Path) -> tuple[Counter[bool], set[str]]:
    """Read cases; returns how many were refused or not, and the kinds of damage that they had."""
    write_capture(folder / "small.h5", sample_contents())
    refused: Counter[bool] = Counter()
    kinds: set[str] = set()
    problems = []
    for case in run_cases(first, count, folder):
        refused[case["refused"]] += 1
        kinds.update(re.findall(r"\w+", case["kind"]))
        if case["problem"]:
            problems.append(f"seed {case['seed']} ({case['kind']}): {case['problem']}")
        assert len(problems) < 20, "\n".join(problems)
    assert not problems, "\n".join(problems)
    return refused, kinds


def test_damaged_captures_give_one_clear_error_or_their_numbers(tmp_path: Path) -> None:
    refused, kinds = fuzz(0, FAST, tmp_path)
    assert refused[True] > FAST * 0.3
    assert refused[False] > FAST * 0.1
    assert kinds == {kind.__name__ for kind in (*BYTES, *EDITS)}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_damaged_captures_do_as_well(tmp_path: Path) -> None:
    """`NANREPLAY_FUZZ_FROM=SEED` goes on where a run was stopped."""
    first = int(os.environ.get("NANREPLAY_FUZZ_FROM", str(FAST)))
    fuzz(first, int(os.environ.get("NANREPLAY_FUZZ", "100000")), tmp_path)
