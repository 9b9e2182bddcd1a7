"""JUnit, SARIF, annotations and JSON lines of made-up outcomes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from sample_report import FINDINGS, ORIGIN, sample_report

from nanreplay.findings import Cause
from nanreplay.records import Frame
from nanreplay.report.machine_formats import (
    CaptureOutcome,
    annotation,
    checkout_root,
    outcome_to_json,
    place_of,
    to_junit,
    to_sarif,
)

CODE = "return centred / tf.sqrt(variance)"
CAUSES = (
    Cause("variance_zero", 0.9, "The feature is constant."),
    Cause("data_outlier", 0.3, "Or not."),
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with src/train.py, whose line 3 is CODE, and a folder for captures."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text(
        f"import tensorflow as tf\ndef call():\n    {CODE}\n", encoding="utf-8"
    )
    (tmp_path / "captures").mkdir()
    return tmp_path


@pytest.fixture
def failing(checkout: Path) -> Callable[..., CaptureOutcome]:
    """Makes the outcome of a non-finite capture whose origin is at `file`, `line` and `code`."""

    def make(file: str = "src/train.py", line: int = 3, code: str | None = CODE) -> CaptureOutcome:
        origin = replace(ORIGIN, source=Frame(file, line, "call", code))
        report = sample_report(findings=replace(FINDINGS, origin=origin), causes=CAUSES)
        return CaptureOutcome(
            str(checkout / "captures" / "run.h5"),
            "nonfinite",
            report.sentence,
            report,
            ("a detail",),
            1.25,
        )

    return make


FINE = CaptureOutcome("fine.h5", "finite", "3 steps replayed; all finite.", None, (), 0.5)
UNREADABLE = CaptureOutcome("cut.h5", "unreadable", "cut.h5: not an HDF5 file.")
UNDECIDED = CaptureOutcome("race.h5", "undecided", "PyFunc cannot be replayed: it is Python.")


def test_junit_counts_failures_apart_from_errors(
    failing: Callable[..., CaptureOutcome], checkout: Path
) -> None:
    tree = ElementTree.fromstring(
        to_junit("nanreplay.replay", [failing(), FINE, UNREADABLE, UNDECIDED], checkout).encode()
    )

    suite = tree.find("testsuite")
    assert suite is not None
    for element in (tree, suite):
        assert [element.get(key) for key in ("tests", "failures", "errors", "time")] == [
            "4",
            "1",
            "2",
            "1.750",
        ]
    assert [case.get("name") for case in suite] == [
        "captures/run.h5",
        "fine.h5",
        "cut.h5",
        "race.h5",
    ]
    assert [[child.tag for child in case] for case in suite] == [
        ["failure"],
        ["system-out"],
        ["error"],
        ["error"],
    ]


def test_a_junit_failure_has_the_sentence_the_cause_and_the_line(
    failing: Callable[..., CaptureOutcome], checkout: Path
) -> None:
    outcome = failing()
    case = ElementTree.fromstring(to_junit("nanreplay.replay", [outcome], checkout).encode()).find(
        ".//testcase"
    )
    assert case is not None
    failure = case.find("failure")
    assert failure is not None
    assert (case.get("classname"), case.get("file"), case.get("line")) == (
        "nanreplay.replay",
        "src/train.py",
        "3",
    )
    assert (failure.get("type"), failure.get("message")) == ("variance_zero", outcome.sentence)
    assert failure.text == f"{outcome.sentence}\na detail"


def test_junit_holds_no_character_that_xml_cannot(checkout: Path) -> None:
    wild = CaptureOutcome(
        "a\x1bb\udc80.h5", "nonfinite", 'layer `\x1b[31m<&"\ud800\uffff` gave NaN'
    )
    failure = ElementTree.fromstring(to_junit("nanreplay.bisect", [wild], checkout).encode()).find(
        ".//failure"
    )
    assert failure is not None
    assert failure.get("message") == 'layer `\ufffd[31m<&"\ufffd\ufffd` gave NaN'


def test_sarif_has_a_result_for_each_non_finite_capture_and_notes_what_could_not_be_said(
    failing: Callable[..., CaptureOutcome], checkout: Path
) -> None:
    outcome = failing()
    log = json.loads(json.dumps(to_sarif([outcome, FINE, UNREADABLE], checkout), allow_nan=False))
    assert_sarif(log)

    (result,) = log["runs"][0]["results"]
    assert (result["ruleId"], result["level"], result["message"]["text"]) == (
        "variance_zero",
        "error",
        outcome.sentence,
    )
    place = result["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("src/train.py", 3)
    assert result["properties"]["layer_path"] == "encoder/block_2/norm"
    (invocation,) = log["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is False
    assert [each["message"]["text"] for each in invocation["toolExecutionNotifications"]] == [
        UNREADABLE.sentence
    ]


def test_sarif_of_nothing_bad_closes_what_was_open(checkout: Path) -> None:
    log = to_sarif([FINE], checkout)
    assert_sarif(log)
    assert log["runs"][0]["results"] == []
    assert log["runs"][0]["invocations"][0]["executionSuccessful"] is True


def test_an_alert_stays_the_same_when_its_line_moves(
    failing: Callable[..., CaptureOutcome], checkout: Path
) -> None:
    def fingerprint(outcome: CaptureOutcome) -> Any:
        return to_sarif([outcome], checkout)["runs"][0]["results"][0]["partialFingerprints"]

    assert fingerprint(failing(line=3)) == fingerprint(failing(line=2))
    assert fingerprint(failing()) != fingerprint(failing(code="return x / y"))


def assert_sarif(log: dict[str, Any]) -> None:
    """What the schema of SARIF 2.1.0 requires of the parts that are written, and what code scanning
    asks for on top."""
    assert log["version"] == "2.1.0"
    assert set(log) == {"$schema", "version", "runs"}
    for run in log["runs"]:
        assert set(run) <= {"tool", "results", "invocations", "columnKind", "originalUriBaseIds"}
        driver = run["tool"]["driver"]
        assert driver["name"]
        assert run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
        assert all(
            rule["id"] and rule["shortDescription"]["text"] and rule["help"]["text"]
            for rule in driver["rules"]
        )
        assert len({rule["id"] for rule in driver["rules"]}) == len(driver["rules"])
        for result in run["results"]:
            assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
            assert result["level"] in ("none", "note", "warning", "error")
            assert result["message"]["text"]
            for location in result["locations"]:
                place = location["physicalLocation"]
                assert not place["artifactLocation"]["uri"].startswith("/")
                assert (
                    place["artifactLocation"].get("uriBaseId", "%SRCROOT%")
                    in run["originalUriBaseIds"]
                )
                assert place["region"]["startLine"] >= 1
            assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
        for invocation in run["invocations"]:
            assert isinstance(invocation["executionSuccessful"], bool)
            assert all(each["message"]["text"] for each in invocation["toolExecutionNotifications"])


def test_an_annotation_is_one_line_at_the_line_of_code(
    failing: Callable[..., CaptureOutcome], checkout: Path
) -> None:
    outcome = failing()
    title = "title=variance zero (captures/run.h5)"
    assert (
        annotation(outcome, checkout)
        == f"::error file=src/train.py,line=3,{title}::{outcome.sentence}"
    )
    assert annotation(FINE, checkout) is None


def test_an_annotation_cannot_be_broken_out_of(checkout: Path) -> None:
    hostile = CaptureOutcome("a,b:c.h5", "nonfinite", "100 % wrong\r\n::set-env name=PATH::/evil")
    (line,) = (annotation(hostile, checkout) or "").splitlines()
    assert line.startswith(
        "::error file=a%2Cb%3Ac.h5,title=non finite (a%2Cb%3Ac.h5)::100 %25 wrong%0D%0A::set-env"
    )


@pytest.mark.parametrize(
    "file",
    ["src/train.py", "/home/me/project/src/train.py", "train.py", "C:\\me\\project\\src\\train.py"],
)
def test_a_line_recorded_anywhere_is_found_in_the_checkout(
    file: str,
    failing: Callable[..., CaptureOutcome],
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(checkout / "src" if file == "train.py" else checkout)
    place = place_of(failing(file), checkout)
    assert (place.file, place.line) == ("src/train.py", 3)


def test_a_file_beside_its_capture_is_found(
    failing: Callable[..., CaptureOutcome], checkout: Path
) -> None:
    (checkout / "captures" / "run.py").write_text(CODE, encoding="utf-8")
    assert place_of(failing("run.py", 1), checkout).file == "captures/run.py"


def test_of_files_with_that_name_the_one_that_holds_the_line_is_taken(
    failing: Callable[..., CaptureOutcome], checkout: Path
) -> None:
    (checkout / "train.py").write_text("print('another script')\n", encoding="utf-8")
    assert place_of(failing("/home/me/src/train.py"), checkout).file == "src/train.py"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"# moved\n\n\n\n{CODE}\n", 5),
        ("# the line was changed\n", None),
        (f"{CODE}\n# twice\n\n{CODE}\n", None),
    ],
)
def test_a_line_that_moved_is_followed_and_one_that_is_gone_is_not_guessed(
    text: str, line: int | None, failing: Callable[..., CaptureOutcome], checkout: Path
) -> None:
    (checkout / "src" / "train.py").write_text(text, encoding="utf-8")
    place = place_of(failing(str(checkout / "src" / "train.py")), checkout)
    assert (place.file, place.line) == ("src/train.py", line)


def test_code_that_is_not_in_the_checkout_is_reported_at_the_capture(
    failing: Callable[..., CaptureOutcome], checkout: Path
) -> None:
    for outcome in (failing("/elsewhere/other.py"), replace(failing(), report=None)):
        place = place_of(outcome, checkout)
        assert (place.file, place.line) == ("captures/run.h5", None)


def test_paths_are_relative_to_the_checkout_of_the_job(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout / "src")
    assert checkout_root({}) == checkout
    assert checkout_root({"CI_PROJECT_DIR": str(checkout / "captures")}) == checkout / "captures"
    assert checkout_root({"GITHUB_WORKSPACE": os.sep}) == Path(os.sep)


def test_json_lines_are_flat_and_have_all_keys(failing: Callable[..., CaptureOutcome]) -> None:
    facts, empty = outcome_to_json(failing()), outcome_to_json(UNREADABLE)
    assert list(facts) == list(empty)
    assert [facts[key] for key in ("status", "cause", "step", "op_type", "line")] == [
        "nonfinite",
        "variance_zero",
        48112,
        "Rsqrt",
        3,
    ]
    assert (empty["status"], empty["sentence"], empty["cause"]) == (
        "unreadable",
        UNREADABLE.sentence,
        None,
    )
    assert not any(isinstance(value, dict) for value in facts.values())
