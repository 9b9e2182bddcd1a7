"""What is one failure and what is another, told from stored answers.

`answers` holds what `nanreplay triage sample_runs --cache DIR` keeps, one file a sample run.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from nanreplay.triage.capture_answer import (
    CaptureAnswer,
    answer_from_json,
    counted_from_first,
    undecided_answer,
)
from nanreplay.triage.failure_groups import TriagedCapture, TriageResult, grouped, run_of
from nanreplay.triage.failure_key import failure_key
from nanreplay.triage.triage_pages import triage_html, triage_markdown
from nanreplay.triage.triage_text import summary, triage_lines, triage_to_json

ANSWERS = Path(__file__).with_name("answers")
FINGERPRINTS = ["2b78b59ac724", "5e94d3009c57", "cb7570d6cc0c", "88467321f88d"]
NAMES = ("log_of_zero", "float16_overflow", "exploding_rnn", "nan_in_one_sample")


def stored(name: str, **changes: Any) -> CaptureAnswer:
    value = json.loads((ANSWERS / f"{name}.json").read_text(encoding="utf-8"))
    return replace(answer_from_json(value), **changes)


def fingerprint(answer: CaptureAnswer) -> str:
    key = failure_key(answer)
    assert key is not None
    return key.fingerprint


def elsewhere(answer: CaptureAnswer, part: str, **changes: Any) -> CaptureAnswer:
    """The same answer with other facts in a part of its report, such as `origin.source`."""
    report = copy.deepcopy(answer.report)
    place: Any = report
    for name in part.split("."):
        place = place[name]
    place.update(changes)
    return replace(answer, report=report)


def capture(name: str, path: str, size_bytes: int = 1000, **changes: Any) -> TriagedCapture:
    return TriagedCapture(stored(name, path=path, **changes), size_bytes)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("origin", {"step": 99, "rows": [3], "op_name": "compile_loss_3/cross_entropy/Log"}),
        ("origin.source", {"file": "/home/somebody/project/log_of_zero.py", "line": 21}),
        ("origin.source", {"file": "C:\\work\\log_of_zero.py"}),
        ("cause", {"confidence": 0.6, "sentence": "Something else.", "evidence": []}),
        ("verdict", {"bit_exact": False}),
    ],
)
def test_step_rows_values_and_folders_are_no_part_of_a_failure(
    part: str, changes: dict[str, Any]
) -> None:
    answer = stored("log_of_zero")
    assert fingerprint(elsewhere(answer, part, **changes)) == fingerprint(answer)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("origin", {"op_type": "Log1p"}),
        ("origin.source", {"code": "return -tf.reduce_mean(tf.math.log(probabilities))"}),
        ("origin.source", {"file": "losses.py"}),
        ("cause", {"kind": "log_of_negative"}),
    ],
)
def test_cause_op_and_line_make_another_failure(part: str, changes: dict[str, Any]) -> None:
    answer = stored("log_of_zero")
    assert fingerprint(elsewhere(answer, part, **changes)) != fingerprint(answer)


def test_another_layer_makes_another_failure() -> None:
    answer = stored("float16_overflow")
    assert answer.layer == "energy"
    assert fingerprint(replace(answer, layer="head/energy")) != fingerprint(answer)


def test_arguments_of_fit_are_no_part_of_a_failure_inside_of_keras() -> None:
    answer = stored("exploding_rnn")
    other = elsewhere(answer, "origin.source", code="model.fit(load, target, epochs=90)")
    assert fingerprint(other) == fingerprint(answer)


def test_without_source_lines_the_number_of_the_line_counts() -> None:
    answer = elsewhere(stored("log_of_zero"), "origin.source", code=None)
    assert fingerprint(elsewhere(answer, "origin.source", line=15)) != fingerprint(answer)


def test_data_of_two_programs_are_two_failures() -> None:
    answer = stored("nan_in_one_sample")
    assert fingerprint(replace(answer, script="other.py")) != fingerprint(answer)


def test_a_fingerprint_stays_over_versions() -> None:
    """Trackers hold fingerprints: one that changes must be a decision, told in the changelog."""
    assert [fingerprint(stored(name)) for name in NAMES] == FINGERPRINTS


@pytest.mark.parametrize(
    ("layer_path", "names", "expected"),
    [
        ("dense_4", {"dense_3", "dense_4", "relu"}, "dense_1"),
        ("dense_1", {"dense", "dense_1"}, "dense_1"),
        ("encoder_2/dense_7", {"encoder_2", "dense_7", "dense_8"}, "encoder/dense"),
        ("memory/cell", {"memory"}, "memory/cell"),
    ],
)
def test_layers_are_numbered_within_their_model(
    layer_path: str, names: set[str], expected: str
) -> None:
    assert counted_from_first(layer_path, names) == expected


def test_a_later_file_of_a_recording_is_no_other_run() -> None:
    assert run_of("runs/a/run.1.h5") == run_of("runs/a/run.h5") == "runs/a/run.h5"
    assert run_of("runs/b/run.h5") != run_of("runs/a/run.h5")
    assert run_of("s3://bucket/v1.2/run.12.h5") == "s3://bucket/v1.2/run.h5"


def example() -> TriageResult:
    captures = [
        capture("float16_overflow", "c/run.h5", 5000),
        capture("log_of_zero", "b/run.h5", 900, recorded="2026-03-02T10:00:00+01:00"),
        capture("log_of_zero", "a/run.1.h5", 1200, recorded="2026-03-02T09:30:00+00:00"),
        capture("log_of_zero", "a/run.h5", 1500, recorded="2026-02-01T08:00:00+00:00"),
        TriagedCapture(CaptureAnswer("d/run.h5", "unreadable", "d/run.h5: is cut off."), 7),
        TriagedCapture(undecided_answer("e/run.h5", "took longer than 5 s."), 8),
    ]
    return grouped(captures)


def test_groups_say_how_often_when_and_which_file_is_the_smallest() -> None:
    first, second = example().groups
    assert (first.key.op_type, second.key.op_type) == ("Log", "Square")
    assert [each.answer.path for each in first.captures] == ["a/run.h5", "b/run.h5", "a/run.1.h5"]
    assert first.runs == ("a/run.h5", "b/run.h5")
    assert first.seen == ("2026-02-01T08:00:00+00:00", "2026-03-02T09:30:00+00:00")
    assert first.cheapest.answer.path == "b/run.h5"


def test_people_read_the_groups_then_what_could_not_be_read() -> None:
    result = example()
    lines = list(triage_lines(result))
    assert lines[0] == "6 captures: 4 non-finite in 2 groups, 1 undecided, 1 not read."
    assert lines[2].endswith("· 3 captures of 2 runs · 2026-02-01 08:00 to 2026-03-02 09:30")
    assert lines[3].startswith("  log of zero · `Log` · log_of_zero.py:14 `return -tf.reduce_sum")
    assert lines[4] == f"  {stored('log_of_zero').sentence}"
    assert lines[5:7] == [
        "  runs: a/run.h5 and b/run.h5",
        "  cheapest: nanreplay open b/run.h5 (900 bytes)",
    ]
    assert lines[-2:] == [
        "undecided: e/run.h5: took longer than 5 s.",
        "not read: d/run.h5: is cut off.",
    ]


def test_programs_read_the_same() -> None:
    value = json.loads(json.dumps(triage_to_json(example()), allow_nan=False))
    assert (value["format"], value["version"]) == ("nanreplay-triage", 1)
    assert value["counts"] == {"nonfinite": 4, "finite": 0, "undecided": 1, "unreadable": 1}
    group = value["groups"][0]
    assert (group["cause"], group["op_type"], group["layer"]) == ("log_of_zero", "Log", None)
    assert (group["count"], group["lines"]) == (3, [14])
    assert group["cheapest"] == {"path": "b/run.h5", "size_bytes": 900}
    statuses = {each["path"]: each["status"] for each in value["captures"]}
    assert statuses["d/run.h5"] == "unreadable"
    of_group = [x["path"] for x in value["captures"] if x["fingerprint"] == group["fingerprint"]]
    assert sorted(group["captures"]) == of_group


def test_pages_show_text_of_captures_as_text() -> None:
    sentence = "step 1 · `Log` <script>alert(1)</script>"
    hostile = "x/<b>run</b>.h5"
    captures = [
        capture("log_of_zero", hostile, sentence=sentence),
        TriagedCapture(CaptureAnswer("<i>d", "unreadable", "<i>d: is cut off."), 7),
    ]
    result = grouped(captures)
    page = triage_html(result)
    assert "<script>" not in page
    assert "<i>" not in page
    assert "x/&lt;b&gt;run&lt;/b&gt;.h5" in page
    rendered = MarkdownIt("commonmark").enable("table").render(triage_markdown(result))
    assert "<script>" not in rendered
    assert "<i>" not in rendered
    assert rendered.count("<table>") == 3


def test_what_came_from_another_worker_is_the_failure_of_that_one() -> None:
    first = stored("log_of_zero", path="run/run.0.h5", workers=2)
    reached = replace(first, path="run/run.1.h5", report={**(first.report or {}), "origin": None})
    other = replace(reached, path="other/run.1.h5")
    result = grouped(TriagedCapture(each, 9) for each in (reached, first, other))
    group, alone = result.groups
    assert [each.answer.path for each in group.captures] == ["run/run.0.h5", "run/run.1.h5"]
    assert (group.key, group.runs) == (failure_key(first), ("run/run.h5",))
    assert group.cheapest.answer == first
    assert alone.key.trigger == "loss loss"


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["finite", "finite"], 0),
        (["finite", "nonfinite", "unreadable", "undecided"], 1),
        (["unreadable", "unreadable"], 2),
        (["finite", "unreadable"], 3),
        (["undecided", "unreadable"], 3),
    ],
)
def test_the_exit_code_is_0_only_where_all_are_finite(statuses: list[str], code: int) -> None:
    captures = [
        capture("log_of_zero", f"{place}.h5", status=status)
        for place, status in enumerate(statuses)
    ]
    assert grouped(captures).code == code


def test_what_was_known_is_said() -> None:
    result = grouped([capture("log_of_zero", "a.h5", is_cached=True)])
    assert summary(result) == ("1 capture: 1 non-finite in 1 group. 1 known from an earlier run.")


@pytest.mark.parametrize("n_lost", [3, 4])
def test_many_captures_with_the_same_reason_share_a_line(n_lost: int) -> None:
    reason = "the Dask scheduler went away."
    lost = [undecided_answer(f"{number}.h5", reason) for number in range(n_lost)]
    lines = list(triage_lines(grouped(TriagedCapture(each, 9) for each in lost)))
    expected = [f"undecided: {number}.h5: {reason}" for number in range(3)]
    if n_lost > 3:
        expected = [f"undecided: 4 captures (--json names them): {reason}"]
    assert lines == [f"{n_lost} captures: {n_lost} undecided.", "", *expected]
