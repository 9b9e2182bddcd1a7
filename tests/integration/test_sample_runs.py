"""The committed sample runs: each opens, replays, and is explained as its script's own docstring
has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanreplay import Capture, Replay
from nanreplay.replay.step_results import Difference, StepResult
from nanreplay.report.explain import ExplainedReplay, explain_replay

pytestmark = pytest.mark.xdist_group("sample runs")  # one worker explains what they share
FOLDER = Path(__file__).resolve().parents[2] / "sample_runs"
TrainedHere = Callable[[str], Path]


@dataclass(frozen=True)
class Expected:
    """What bisecting a sample run must name."""

    step: int
    phase: str
    where: str
    op: str | None
    rows: tuple[int, ...] | None
    layer: str | None = None
    verdict: str = "reproduced"


EXPECTED = {
    "custom_eager_loop": Expected(79, "loss", "loss", "Log", (0,)),
    "dead_relu": Expected(20, "forward", "layer", "RealDiv", (653 - 20 * 32,), "gate"),
    "division_by_zero": Expected(17, "loss", "loss", "RealDiv", (570 - 17 * 32,)),
    "empty_mask_zero_over_zero": Expected(13, "loss", "loss", "RealDiv", (421 - 13 * 32,)),
    "exploding_rnn": Expected(13, "forward", "layer", "MatMul", None, "simple_rnn_cell"),
    "float16_overflow": Expected(
        12, "forward", "layer", "Square", (197 - 12 * 16,), "energy", "precision_only"
    ),
    "learning_rate_too_high": Expected(26, "loss", "loss", "Sum", None),
    "log_of_zero": Expected(12, "loss", "loss", "Log", (402 - 12 * 32,)),
    "nan_in_one_sample": Expected(22, "input", "input", None, (717 - 22 * 32,)),
    "sqrt_gradient_at_zero": Expected(
        9, "backward", "layer", "SqrtGrad", (301 - 9 * 32,), "distance"
    ),
    "tutorial_loop": Expected(
        15, "loss", "loss", "Square", (500 - 15 * 32,), verdict="precision_only"
    ),
    "weights_drawn_too_large": Expected(
        0, "forward", "layer", "MatMul", None, "hidden_11", verdict="precision_only"
    ),
    "xla_label_out_of_range": Expected(
        10, "loss", "loss", "SparseSoftmaxCrossEntropyWithLogits", (331 - 10 * 32,)
    ),
}
BY_TRAINING = {"custom_eager_loop", "exploding_rnn", "learning_rate_too_high"}
"""Runs in which no single sample does it: another processor may get there earlier or later."""
LARGEST_ULP = 256
"""How far a replay on another processor may be off; 50 were seen."""
each_run = pytest.mark.parametrize("name", sorted(EXPECTED))
LONG_TO_REPLAY = "exploding_rnn"  # 300 time steps, op by op
each_replay = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == LONG_TO_REPLAY else [])
        for name in sorted(EXPECTED)
    ],
)


@pytest.fixture
def capture(name: str) -> Iterator[Capture]:
    with Capture(FOLDER / f"{name}.h5") as opened:
        yield opened


def far_off(found: Difference) -> bool:
    """Whether a value of a step is further from the recorded one than another processor's is.

    It adds in another order and multiplies and adds in one rounding or in two. Where terms cancel,
    as in the gradient of a last bias, what is left has fewer digits than they had: a value below
    0.01 is held against the ulp of 0.01.
    """
    allowed = LARGEST_ULP * float(np.spacing(np.float32(0.01)))
    return found.ulp > LARGEST_ULP and abs(found.recorded - found.replayed) > allowed


def test_every_script_has_a_capture_and_an_expectation(regenerate: Any) -> None:
    assert (
        sorted(regenerate.NAMES)
        == sorted(EXPECTED)
        == sorted(path.stem for path in FOLDER.glob("*.h5"))
    )


def test_the_readme_shows_every_run() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in EXPECTED if f"[{name}]({name}.py)" not in text] == []


@each_run
def test_a_capture_is_small_and_holds_no_folder_of_the_machine_that_made_it(
    name: str, capture: Capture
) -> None:
    assert (FOLDER / f"{name}.h5").stat().st_size < 500_000
    assert {frame.file for frame in capture.frames} == {f"{name}.py"}


@dataclass(frozen=True)
class Examined:
    """A sample run that was replayed and explained."""

    results: list[StepResult]
    explained: ExplainedReplay


Examine = Callable[[str], Examined]


@pytest.fixture(scope="module")
def examine() -> Iterator[Examine]:
    """Replays and explains a sample run, once for all tests; its replay stays open."""
    with ExitStack() as opened:

        @cache
        def once(name: str) -> Examined:
            capture = opened.enter_context(Capture(FOLDER / f"{name}.h5"))
            replay = opened.enter_context(Replay(capture))
            return Examined(replay.run_window("recorded"), explain_replay(replay))

        yield once


@each_replay
def test_replaying_turns_non_finite_at_the_incident_and_not_before(
    name: str, capture: Capture, examine: Examine
) -> None:
    results = examine(name).results

    incident = EXPECTED[name].step
    assert capture.incident.step == incident
    assert [result.step for result in results if not result.finite] == [incident]
    before = [each for result in results if result.finite for each in result.differences]
    assert [each for each in before if far_off(each)] == []


@each_replay
def test_bisecting_names_phase_op_layer_and_rows(name: str, examine: Examine) -> None:
    report, expected = examine(name).explained.report(), EXPECTED[name]

    origin = report.findings.origin
    assert origin is not None, report.sentence
    assert (origin.step, origin.phase, origin.where, origin.op_type) == (
        expected.step,
        expected.phase,
        expected.where,
        expected.op,
    )
    assert origin.layer == expected.layer
    if name != "exploding_rnn":  # its weights grow until some samples overflow, on each CPU others
        assert origin.rows == expected.rows
    assert report.verdict.kind == expected.verdict
    assert origin.op_type is None or (
        origin.source is not None and origin.source.file == f"{name}.py"
    )


@pytest.mark.slow
def test_the_time_step_of_an_exploding_recurrent_network_is_named(examine: Examine) -> None:
    origin = examine("exploding_rnn").explained.bisection.findings.origin
    assert origin is not None
    assert [0 < loop.iteration < 300 for loop in origin.loop] == [True]


def test_a_divergence_is_traced_to_its_beginning(examine: Examine) -> None:
    root = examine("learning_rate_too_high").explained.bisection.findings.root
    assert root is not None
    assert root.step < 5
    assert "grew" in root.reason


@pytest.mark.parametrize(
    ("name", "helps", "does_not_help"),
    [
        ("learning_rate_too_high", "lr=0.1", None),
        pytest.param(
            "weights_drawn_too_large", "init=glorot", "clipnorm=1.0", marks=pytest.mark.slow
        ),
        pytest.param("weights_drawn_too_large", "init=he", None, marks=pytest.mark.slow),
        ("dead_relu", "leaky_relu", "lr=0.1"),
        ("nan_in_one_sample", "clean_data", "clipvalue=1.0"),
        pytest.param("tutorial_loop", "clip_data", None, marks=pytest.mark.slow),
        pytest.param("exploding_rnn", "clipvalue=1.0", None, marks=pytest.mark.slow),
        pytest.param("exploding_rnn", "clipnorm=1.0", "lr=0.1", marks=pytest.mark.slow),
        ("log_of_zero", "epsilon=1e-8", "clipnorm=1.0"),
        # 1.001 / 1e-8 is finite, and as harmful to a training
        ("division_by_zero", "epsilon=1e-2", "epsilon=1e-8"),
    ],
)
def test_what_people_try_by_hand_is_tried_on_the_recording(
    name: str, helps: str, does_not_help: str | None, examine: Examine
) -> None:
    given = [helps, *([does_not_help] if does_not_help else [])]
    results = examine(name).explained.report(given).fixes

    assert [result.prevents for result in results[: len(given)]] == [True, False][: len(given)], (
        results
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name != "log_of_zero" else [])
        for name in sorted(EXPECTED)
    ],
)
def test_a_script_runs_into_its_incident_again_bit_for_bit(
    name: str,
    trained_here: TrainedHere,
    capture: Capture,
) -> None:
    with Capture(trained_here(name)) as again, Replay(again) as replay:
        assert again.incident.trigger.what == capture.incident.trigger.what
        if name not in BY_TRAINING:
            assert again.incident.step == EXPECTED[name].step
        results = replay.run_window("recorded")
    assert [result.step for result in results if not result.finite] == [again.incident.step]
    assert [result.differences for result in results if not result.bit_exact] == []


def test_regenerating_an_unknown_run_says_which_there_are(
    regenerate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert regenerate.main(["nope"]) == 2
    assert "tutorial_loop" in capsys.readouterr().err
