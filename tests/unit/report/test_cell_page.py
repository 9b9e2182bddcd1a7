"""Pages in a notebook: below the cell that failed, with a short error, and progress.

The cells run in IPython's own shell in this process; docs/notebook.ipynb runs in a real kernel.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell

from nanreplay import notebook
from nanreplay.errors import NonFiniteError, ReplayError
from nanreplay.report import cell_page
from nanreplay.report.stored_answers import content_of, store_answer, stored_answer

SAMPLE = Path(__file__).parents[3] / "sample_runs" / "log_of_zero.h5"
FAILING = (
    "def train():\n    raise NonFiniteError('step 12: loss is NaN.', step=12, path=path)\ntrain()"
)


class Kernel:
    """A shell that has what the shell of a kernel has."""

    def __init__(self, shell: Any, path: Path) -> None:
        self.shell = shell
        self.errors: list[str] = []
        shell.kernel = SimpleNamespace()
        shell.display_pub = CapturingDisplayPublisher(parent=shell)
        shell._showtraceback = lambda kind, error, lines: self._show(lines)
        shell.user_ns.update(NonFiniteError=NonFiniteError, path=str(path))

    def _show(self, lines: list[str]) -> None:
        self.errors.append("\n".join(lines))
        self.shell.display_pub.outputs.append({"data": {"text/plain": "(the error)"}})

    def run(self, cell: str) -> list[dict[str, str]]:
        """What a cell shows, in that order; an output that is drawn again counts once."""
        self.shell.display_pub.outputs.clear()
        self.shell.run_cell(cell)
        drawn: dict[str, dict[str, str]] = {}
        for number, output in enumerate(self.shell.display_pub.outputs):
            key = (output.get("transient") or {}).get("display_id", str(number))
            drawn[key] = output["data"]
        return list(drawn.values())


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A capture whose answer is one of this nanreplay."""
    path = tmp_path / "run.h5"
    shutil.copy(SAMPLE, path)
    answer = stored_answer(path)
    assert answer is not None
    store_answer(path, answer.report, content=content_of(path))
    return path


@pytest.fixture
def kernel(capture: Path) -> Iterator[Kernel]:
    shell = InteractiveShell.instance()
    yield Kernel(shell, capture)
    InteractiveShell.clear_instance()


def test_below_a_short_error_stands_the_page_of_the_capture(kernel: Kernel) -> None:
    error, page = kernel.run(FAILING)
    assert error["text/plain"] == "(the error)"
    lines = kernel.errors[0].splitlines()
    assert lines[0].startswith("NonFiniteError: step 12: loss is NaN. Capture: ")
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == [
        "Cell In[1], line 3",
        "Cell In[1], line 2",
    ]
    for part in (
        "log(0.0) = -inf in the loss",
        "log_of_zero.py",
        "probabilities + 1e-7",
        "sample 18",
    ):
        assert part in page["text/html"]
    assert page["text/plain"].startswith("step 12 · loss")


def test_asking_for_all_frames_gives_them_and_no_second_page(kernel: Kernel) -> None:
    kernel.run(FAILING)
    assert len(kernel.run("%tb")) == 1
    assert kernel.errors[1].startswith("Traceback (most recent call last):")


def test_an_error_that_the_cell_catches_shows_nothing(kernel: Kernel) -> None:
    function = FAILING.removesuffix("train()")
    assert kernel.run(f"{function}try:\n    train()\nexcept NonFiniteError:\n    pass") == []


def test_of_two_incidents_in_one_cell_the_last_is_shown(
    kernel: Kernel, capture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(cell_page, "show_incident", shown.append)
    kernel.shell.user_ns["show"] = notebook.show_incident_after_cell
    kernel.run("show('first.h5'); show('second.h5')")
    kernel.run("'nothing new'")
    assert shown == ["second.h5"]


def test_the_page_first_has_what_the_file_says_and_how_far_the_replay_is(
    kernel: Kernel, capture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_page, "stored_answer", lambda path: None)

    def explain_elsewhere(path: str, progress: Any, say: Any) -> None:
        say("trying <fixes>")
        raise ReplayError("The process ended.")

    monkeypatch.setattr(cell_page, "explain_elsewhere", explain_elsewhere)
    _, page = kernel.run(FAILING)
    drawn = [each["data"]["text/html"] for each in kernel.shell.display_pub.outputs[1:]]
    assert "your last line before the loss" in drawn[0]
    assert "<progress></progress> nanreplay: trying &lt;fixes&gt;" in drawn[-2]
    assert "It could not be explained. The process ended." in page["text/html"]
    assert "your last line before the loss" in page["text/html"]


def test_a_capture_that_cannot_be_read_costs_one_line(
    kernel: Kernel, capture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture.write_bytes(b"no capture")
    assert len(kernel.run(FAILING)) == 1
    assert capsys.readouterr().out.count("\n") == 1


def test_outside_of_a_notebook_nothing_waits_for_a_cell() -> None:
    notebook.show_incident_after_cell("run.h5")
    assert not notebook.is_kernel()
    assert notebook.cell_of(__file__) is None
