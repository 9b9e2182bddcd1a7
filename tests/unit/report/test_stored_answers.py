"""Reports in captures: back from JSON as they were, trusted for one content and one version."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
from sample_contents import sample_contents
from sample_report import FINDINGS, INF, LINK, LOOP, NAN, OPERAND, ORIGIN, OUTPUT, sample_report

from nanreplay import Capture, __version__
from nanreplay.capture import stored_report as stored_reports
from nanreplay.capture import write_capture
from nanreplay.capture.arrays import read_json, write_array, write_json
from nanreplay.capture.writer import lazy_contents
from nanreplay.errors import FormatError, MissingPackageError, StorageError
from nanreplay.findings import Cause, DifferingOp, FixResult, ModeDifference, Verdict
from nanreplay.records import Trigger
from nanreplay.report.contents import Report
from nanreplay.report.inventory import inventory, inventory_lines
from nanreplay.report.report_json import from_json, to_json
from nanreplay.report.stored_answers import (
    answer_without_tensorflow,
    content_of,
    store_answer,
    stored_answer,
)

SAMPLES = sorted((Path(__file__).parents[3] / "sample_runs").glob("*.h5"))
FULL = sample_report(
    verdict=Verdict(
        "precision_only",
        True,
        difference=ModeDifference(
            ("ops", "float64"), None, DifferingOp("Mul", "a/Mul", "forward", "a", 2**62)
        ),
    ),
    findings=replace(
        FINDINGS,
        origin=replace(
            ORIGIN,
            loop=LOOP,
            outputs=(replace(OUTPUT, value=NAN), replace(OUTPUT, value="(nan+0j)", indices=())),
            operands=(replace(OPERAND, value=7, min=-INF), replace(OPERAND, value=True, max=None)),
            kind="raised",
            replica=1,
        ),
        other_origins=(ORIGIN,),
        chain=(replace(LINK, absmax=None, hides="nan"),),
    ),
    causes=(Cause("variance_zero", 1.0, "It is 0.", ("a",)), Cause("other", 0.1, "Maybe.")),
    fixes=(
        FixResult(
            "epsilon",
            {"value": 1e-5, "how": ["a", None]},
            prevents=False,
            steps_checked=(3, 12),
            nonfinite=Trigger("loss", "loss", "inf"),
            nonfinite_step=12,
            loss_change=0.5,
            final_loss=INF,
            code="x + 1e-5",
            source=ORIGIN.source,
            places=2,
            edits=({"file": "a.py", "line": 3},),
            note="A note.",
            outcome="moves",
            moved_to=ORIGIN,
        ),
        FixResult("lr", {}, None, None),
    ),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_capture(tmp_path / "run.h5", sample_contents())
    return tmp_path / "run.h5"


def stored_in(path: Path, report: Report = FULL) -> Path:
    store_answer(path, report, content=content_of(path))
    return path


def edit_table(path: Path, **changes: Any) -> None:
    """Change keys of the stored table."""
    with h5py.File(path, "r+") as file:
        table = {**read_json(file["report"]), **changes}
        del file["report"]
        write_json(file, "report", table)


@pytest.mark.parametrize("report", [FULL, sample_report()], ids=["full", "plain"])
def test_a_report_comes_back_from_its_json(report: Report) -> None:
    value = json.loads(json.dumps(to_json(report), allow_nan=False))
    back = from_json(value)
    assert repr(back) == repr(report)  # NaN equals nothing, and is written as it is
    assert to_json(back) == value
    assert repr(from_json(value, "b.h5")) == repr(replace(report, path="b.h5"))


def lost_keys(stored: Any, back: Any, place: str = "") -> list[str]:
    """Where a JSON that was stored says something else than the one that came back of it."""
    if isinstance(stored, dict) and isinstance(back, dict):
        pairs = [(stored[key], back.get(key, "no such key"), f"{place}/{key}") for key in stored]
    elif isinstance(stored, list) and isinstance(back, list) and len(stored) == len(back):
        pairs = [
            (one, two, f"{place}/{i}")
            for i, (one, two) in enumerate(zip(stored, back, strict=True))
        ]
    else:
        return [] if stored == back else [place]
    return [lost for pair in pairs for lost in lost_keys(*pair)]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_the_reports_of_all_sample_runs_come_back(sample: Path) -> None:
    answer = stored_answer(sample)
    assert answer is not None
    assert answer.is_of_this_content
    with Capture(sample) as capture:
        table: Any = capture.stored_report()
    table["report"]["capture"]["path"] = str(sample)
    lost = lost_keys(table["report"], to_json(answer.report))
    assert not lost  # what later versions say besides is null


@pytest.mark.parametrize("key", ["verdict", "origin", "fixes", "chain", "steps"])
@pytest.mark.parametrize("value", [3, "text", [1], {"kind": 1}, 10**400], ids=lambda _: "")
def test_a_damaged_report_says_so(key: str, value: Any) -> None:
    table = to_json(FULL)
    changed = {"capture": {**table["capture"], key: value}} if key == "steps" else {key: value}
    with pytest.raises(FormatError):
        from_json({**table, **changed})


def test_a_stored_answer_is_read_back_with_its_maker_and_the_data_stay(path: Path) -> None:
    before = content_of(path)
    with Capture(path) as capture:
        names = set(capture._children)
    stored_in(path)
    answer = stored_answer(path)
    assert answer is not None
    assert repr(answer.report) == repr(replace(FULL, path=str(path)))
    assert (answer.maker.nanreplay, answer.is_current) == (__version__, True)
    assert content_of(path) == before == answer.maker.content
    with Capture(path) as capture:
        assert set(capture._children) == names
        capture.contents()
    assert list(path.parent.iterdir()) == [path]


def test_a_newer_answer_takes_the_place_of_an_older_one(path: Path) -> None:
    stored_in(path)
    stored_in(path, sample_report(sentence="Another one."))
    answer = stored_answer(path)
    assert answer is not None
    assert answer.report.sentence == "Another one."


def test_an_answer_of_another_content_is_not_trusted(path: Path) -> None:
    stored_in(path)
    with h5py.File(path, "r+") as file:
        (step, *_) = file["batches"]
        del file[f"batches/{step}/0"]
        write_array(file[f"batches/{step}"], "0", [1.0, 2.0])
    answer = stored_answer(path)
    assert answer is not None
    assert not answer.is_of_this_content
    with pytest.raises(MissingPackageError, match=r"was changed after nanreplay .* stored"):
        answer_without_tensorflow(path)
    with Capture(path) as capture:
        lines = "\n".join(inventory_lines(inventory(capture)))
    assert "before it was changed" in lines
    assert FULL.sentence not in lines


def test_an_answer_of_another_version_says_by_which(path: Path) -> None:
    edit_table(stored_in(path), nanreplay="0.0.7", created="2020-02-03T04:05:06+00:00")
    answer = answer_without_tensorflow(path)
    assert not answer.is_current
    assert "made by nanreplay 0.0.7" in answer.line
    assert f"on 2020-02-03; this is {__version__}" in answer.line


def test_an_answer_that_cannot_be_read_leaves_the_rest_of_the_file(path: Path) -> None:
    edit_table(stored_in(path), report={**to_json(FULL), "version": 99})
    with pytest.raises(FormatError, match=r"the stored report cannot be read"):
        stored_answer(path)
    with Capture(path) as capture:
        lines = "\n".join(inventory_lines(inventory(capture)))
        capture.contents()
    assert "stored, but not readable" in lines


def test_a_capture_without_an_answer_says_so(path: Path) -> None:
    assert stored_answer(path) is None
    with pytest.raises(MissingPackageError, match="holds no stored answer"):
        answer_without_tensorflow(path)


def test_no_text_of_a_stored_answer_reaches_a_terminal_s_controls(path: Path) -> None:
    table = to_json(FULL)
    table["sentence"] = table["fixes"][0]["params"]["how"][0] = "\x1b[2J"
    edit_table(stored_in(path), report=table, nanreplay="\x1b]0;")
    answer = stored_answer(path)
    assert answer is not None
    assert "\\x1b" not in repr(answer)


def test_a_disk_that_is_full_leaves_the_capture_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored_reports, "write_json", full)
    with pytest.raises(StorageError, match=r"could not be stored: No space left on device"):
        stored_in(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_capture_that_was_written_anew_meanwhile_gets_no_answer(path: Path) -> None:
    content = content_of(path)
    write_capture(path, replace(sample_contents(), metadata={"created": "later"}))
    with pytest.raises(FormatError, match="was written anew meanwhile"):
        store_answer(path, FULL, content=content)
    assert stored_answer(path) is None


def test_a_link_stays_one_and_the_file_keeps_its_mode(path: Path) -> None:
    link = path.with_name("link.h5")
    link.symlink_to(path)
    path.chmod(0o640)
    stored_in(link)
    assert link.is_symlink()
    assert stored_answer(path) is not None
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_capture_that_is_written_again_holds_no_answer_of_the_first(path: Path) -> None:
    again = path.with_name("again.h5")
    with Capture(stored_in(path)) as capture:
        write_capture(again, lazy_contents(capture))
    assert stored_answer(again) is None


def test_the_copy_of_a_capture_elsewhere_names_its_own_place(path: Path) -> None:
    copy = path.with_name("copy.h5")
    shutil.copy(stored_in(path), copy)
    answer = stored_answer(copy)
    assert answer is not None
    assert answer.report.path == str(copy)
