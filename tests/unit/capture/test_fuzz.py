"""Mutated captures: one clear error or the numbers; no traceback, no hang, no other file.
`NANREPLAY_FUZZ=N` sets how many."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from fuzzing import run_cases
from sample_contents import sample_contents

from nanreplay.capture import write_capture


def fuzz(first: int, count: int, folder: Path) -> Counter[bool]:
    write_capture(folder / "small.h5", sample_contents())
    refused: Counter[bool] = Counter()
    problems = []
    for case in run_cases(first, count, folder):
        refused[case["refused"]] += 1
        if case["problem"]:
            problems.append(f"seed {case['seed']} ({case['kind']}): {case['problem']}")
        assert len(problems) < 20, "\n".join(problems)
    assert not problems, "\n".join(problems)
    return refused


def test_a_thousand_damaged_captures_give_one_clear_error_or_their_numbers(tmp_path: Path) -> None:
    refused = fuzz(0, 1000, tmp_path)
    assert refused[True] > 300
    assert refused[False] > 100


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_damaged_captures_do_as_well(tmp_path: Path) -> None:
    """`NANREPLAY_FUZZ_FROM=SEED` goes on where a run was stopped."""
    first = int(os.environ.get("NANREPLAY_FUZZ_FROM", "1000"))
    fuzz(first, int(os.environ.get("NANREPLAY_FUZZ", "100000")), tmp_path)
