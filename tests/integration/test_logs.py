"""What logs and checkpoints tell of real trainings that nobody recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from logged_trainings import FAILING, HEALTHY, Told

from nanreplay.commands import run_command_line
from nanreplay.logs.log_answer import LogAnswer, answer
from nanreplay.logs.log_sentence import log_sentence
from nanreplay.logs.run_reader import read_runs

pytestmark = pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")


def answer_of(folder: Path) -> LogAnswer:
    read = read_runs([str(folder)])
    assert read.problems == ()
    assert len(read.runs) == 1, "the logs and the checkpoints of one training are one run"
    return answer(read.runs[0])


def check(found: LogAnswer, told: Told) -> None:
    sentence = log_sentence(found)
    assert found.found is not None, sentence
    assert found.found.kind == told.kind, sentence
    if told.at is not None:
        assert found.first is not None
        assert found.first.step == told.at, sentence
    healthy = found.weights.last_healthy
    if told.last_healthy is not None:
        assert healthy is not None, sentence
        assert healthy.path.endswith(told.last_healthy), sentence
    if told.hit_layers is not None:
        assert set(found.weights.hit_layers) == set(told.hit_layers)
    triggers = [trigger.kind for trigger in found.found.triggers]
    assert triggers == ([told.trigger] if told.trigger else []), sentence
    assert all(word in sentence for word in told.words), sentence


QUICK = ("metric_only", "divergence", "resumed", "bad_row", "one_layer", "loss_scale")
"""Failures of every run of the tests; each of the others is like one of them."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAILING]
)
def test_step_kind_and_last_healthy_checkpoint_are_told(name: str, tmp_path: Path) -> None:
    told = FAILING[name](tmp_path)
    check(answer_of(tmp_path), told)
    if name == "one_layer":
        left = "`left` is hit"
        assert left in log_sentence(answer_of(tmp_path))
    if name == "resumed":
        cut_files_are_read_as_far_as_they_go(tmp_path)


def cut_files_are_read_as_far_as_they_go(folder: Path) -> None:
    """While a training runs, its files end anywhere; what stands in them so far is told."""
    whole = answer_of(folder)
    for file in (folder / "tb" / "train").iterdir():
        file.write_bytes(file.read_bytes()[:-5])
    cut = answer_of(folder)
    assert cut.first is not None
    assert whole.first is not None
    assert cut.first.step == whole.first.step
    assert any("not complete" in note for note in cut.notes)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_training_raises_no_alarm(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = HEALTHY[name](tmp_path)
    found = answer_of(tmp_path)
    assert found.status == "finite", log_sentence(found)
    assert found.weights.first_broken is None
    assert all(word in " ".join(found.notes) for word in told.words)
    capfd.readouterr()
    assert run_command_line(["logs", str(tmp_path), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert [each["status"] for each in report["runs"]] == ["finite"]
    assert report["runs"][0]["next"] is None


def test_a_csv_alone_tells_the_epoch_and_what_it_cannot_tell(tmp_path: Path) -> None:
    FAILING["bad_row"](tmp_path)
    shutil.rmtree(tmp_path / "tb")
    found = answer_of(tmp_path)
    assert found.found is not None
    assert found.found.kind == "sudden"
    assert found.found.doubt is not None, "a divergence within an epoch would look the same"
    assert found.first is not None
    assert (found.first.axis, found.first.step) == ("epoch", 2)
    assert found.weights.last_healthy is not None
    assert found.weights.last_healthy.path.endswith("model.02.weights.h5")


def test_the_pages_and_the_line_that_records_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    FAILING["half_precision"](tmp_path)
    html, markdown = tmp_path / "page.html", tmp_path / "page.md"
    capfd.readouterr()
    code = run_command_line(["logs", str(tmp_path), "--html", str(html), "--md", str(markdown)])
    out = capfd.readouterr().out
    assert code == 1
    assert out.startswith("`loss` becomes inf at step 22")
    assert "nanreplay run --window" in out
    assert "step_20" in out
    page = html.read_text(encoding="utf-8")
    assert "<svg" in page
    assert "src=" not in page, "it needs no network"
    assert "becomes inf at step 22" in page
    assert "becomes inf at step 22" in markdown.read_text(encoding="utf-8")
