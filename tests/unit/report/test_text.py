"""The report as people read it."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sample_report import FINDINGS, INF, NAN, ORIGIN, sample_report

from nanreplay.findings import DifferingOp, Findings, FixResult, ModeDifference, Verdict
from nanreplay.limits import readable_size
from nanreplay.records import Trigger
from nanreplay.report.numbers import (
    jsonable,
    readable_list,
    readable_number,
    readable_steps,
    readable_trigger,
    readable_ulp,
)
from nanreplay.report.report_text import print_report


def printed(*, is_terminal: bool = False, width: int = 120, **changes: Any) -> str:
    file = io.StringIO()
    print_report(
        sample_report(**changes),
        Console(file=file, force_terminal=is_terminal, width=width, highlight=False),
    )
    return file.getvalue()


def test_the_sentence_comes_first_and_whole() -> None:
    assert printed().splitlines()[0] == sample_report().sentence


def test_facts_operands_chain_and_notes_follow() -> None:
    text = printed(findings=replace(FINDINGS, other_origins=(replace(ORIGIN, op_type="Log"),)))
    for part in (
        "run.h5, steps 48100 to 48112",
        "train.py:88",
        "17 (Proved by replay.)",
        "encoder/norm/var:0",
        "Mul",
        "Log",
        "note: A note.",
    ):
        assert part in text
    assert "ops       non-finite, 3 ulp off" in text


def test_a_narrow_terminal_breaks_no_name_of_a_fix() -> None:
    fix = FixResult("stable_op", {"op": "tf.math.divide_no_nan"}, False, (0, 5), note="It moves.")
    assert "stable_op=tf.math.divide_no_nan  no " in printed(fixes=(fix,))  # a table
    lines = printed(width=80, fixes=(fix,)).splitlines()
    at = lines.index("  stable_op=tf.math.divide_no_nan  prevents it: no")
    assert lines[at + 1] == "      replayed steps 0 to 5. It moves."


def test_a_file_gets_no_colours_and_no_trailing_blanks() -> None:
    text = printed()
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_terminal_gets_colours_unless_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b[36m" in printed(is_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in printed(is_terminal=True)


def test_square_brackets_are_not_markup() -> None:
    assert "[red]x[/red]" in printed(sentence="at [red]x[/red]")


def test_without_an_origin_the_verdict_stands_alone() -> None:
    text = printed(
        findings=Findings(), verdict=Verdict("inconclusive", None, reason="No keyframe.")
    )
    assert "inconclusive: No keyframe." in text
    assert "Operands" not in text


def test_where_modes_part_is_told() -> None:
    ops = (
        DifferingOp("Sub", "sgd/sub", "update", None, 3),
        DifferingOp("Pow", "sgd/pow", "update", "head", 2**62),
    )
    text = " ".join(
        printed(
            verdict=Verdict("xla_only", True, difference=ModeDifference(("recorded", "ops"), *ops))
        ).split()
    )
    assert "recorded and ops first differ at Sub sgd/sub (update), by 3 ulp" in text
    assert "Pow sgd/pow (update of head) is the first op that is finite in ops only" in text
    assert "modes part" not in printed()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (-2.5, "-2.5"),
        (3e38, "3e+38"),
        (NAN, "NaN"),
        (-INF, "-inf"),
        (7, "7"),
        (True, "yes"),
        ("nan", "NaN"),
        (None, "?"),
        (1e6, "1e+06"),
        (float(np.nextafter(np.float32(1), np.float32(2))), "1.00000012"),
        (-0.99999997, "-0.99999997"),
        (123456.7, "123457.0"),
    ],
)
def test_numbers_are_short(value: Any, text: str) -> None:
    assert readable_number(value) == text


def test_sizes_steps_lists_and_distances_read_well() -> None:
    assert [readable_size(size) for size in (12, 2048, 3 * 2**20, 5 * 2**40)] == [
        "12 bytes",
        "2.0 KiB",
        "3.0 MiB",
        "5.0 TiB",
    ]
    assert [readable_steps(steps) for steps in ((), (3,), (3, 4, 5, 9))] == [
        "no steps",
        "step 3",
        "steps 3 to 5, 9",
    ]
    assert [readable_list(items) for items in ((1,), (1, 2), (1, 2, 3))] == [
        "1",
        "1 and 2",
        "1, 2 and 3",
    ]
    assert [readable_ulp(ulp) for ulp in (None, 3, 2**62)] == [
        "not bit for bit",
        "3 ulp off",
        "finite against non-finite",
    ]


def test_anything_else_becomes_text_in_json() -> None:
    assert jsonable({"a": (1 + 2j, b"x")}) == {"a": ["(1+2j)", "b'x'"]}


def test_an_exception_without_a_name_is_its_message() -> None:
    assert readable_trigger(Trigger("exception", "", "Step 2 raised: no root")) == (
        "Step 2 raised: no root"
    )
    assert readable_trigger(Trigger("exception", "ValueError", "no root")) == "ValueError: no root"
