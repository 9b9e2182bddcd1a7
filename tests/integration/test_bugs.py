"""Bugs as people write them: where each is found, why it is said to happen, and which fixes are
said to help and which not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import keras
import pytest
from bugs import BUGS, Bug

from nanreplay.findings import CauseKind
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain

pytestmark = pytest.mark.filterwarnings(
    "ignore:nanreplay. step"
)  # what `on_nan="stop"` says at an incident
every_bug = sorted(BUGS.items())


def in_one_worker(name: str) -> pytest.MarkDecorator:
    """The tests of a bug share its training."""
    return pytest.mark.xdist_group(f"bug {name}")


def slow_if(slow: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if slow else []


QUICK = {
    "clipping_by_a_norm_that_overflows",
    "distance_with_the_epsilon_outside_of_the_root",
    "epsilon_that_float16_rounds_to_zero",
    "kl_divergence_of_an_empty_topic",
    "missing_target_with_a_weight_of_zero",
    "percentage_error_of_a_day_without_sales",
    "poisson_loss_of_a_linear_output",
}
"""Bugs of every run of the tests, one or two of a module. The others are slow tests: a small
training of each of their causes is in `test_causes.py`."""
each_bug = pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, id=name, marks=[in_one_worker(name), *slow_if(name not in QUICK)])
        for name, bug in every_bug
    ],
)
OTHERS = {"hardware_like", "other"}
"""Kinds of cause that no bug in code or data can have."""

Explain = Callable[[Bug], Report]
Capture = Callable[[Bug], Path]


@pytest.fixture(autouse=True)
def _no_layers_of_other_tests() -> Iterator[None]:
    yield
    keras.backend.clear_session(free_memory=False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """Trains a bug, once for all tests."""

    @cache
    def once(bug: Bug) -> Path:
        path = tmp_path_factory.mktemp("bugs") / f"{bug.name}.h5"
        assert bug.run(path), "nothing turned non-finite"
        return path

    return once


@pytest.fixture(scope="module")
def explained(recorded: Capture) -> Explain:
    """Explains a bug, once for all tests."""

    @cache
    def once(bug: Bug) -> Report:
        report = explain(recorded(bug), fixes="none")
        assert not [note for note in report.findings.notes if "please report" in note]
        return report

    return once


def names(bug: Bug, *kinds: str) -> Sequence[str]:
    """Names of fixes, without the values that they are tried with."""
    return [fix.partition("=")[0] for kind in kinds for fix in getattr(bug, kind)]


def test_every_cause_has_a_bug() -> None:
    wanted = set(CauseKind.__args__) - OTHERS
    assert wanted - {bug.causes[0] for bug in BUGS.values()} == set()


def test_most_bugs_have_a_fix_that_looks_right_and_fails() -> None:
    assert len(BUGS) >= 28
    assert all(bug.fails for bug in BUGS.values())


@each_bug
def test_a_bug_is_found_where_it_is(bug: Bug, explained: Explain) -> None:
    report = explained(bug)

    origin = report.findings.origin
    assert origin is not None, report.sentence
    assert (origin.step, origin.phase, origin.layer) == (bug.step, bug.phase, bug.layer), (
        report.sentence
    )
    assert origin.op_type in (bug.ops or (None,))
    assert origin.rows == bug.rows, origin.rows_reason
    assert (origin.loop[-1].iteration if origin.loop else None) == bug.iteration
    assert report.incident_step == bug.step
    assert bug.trigger in (None, report.trigger.what)
    assert report.verdict.kind in ("reproduced", "precision_only")


@each_bug
def test_a_bug_is_said_to_happen_for_what_makes_it_happen(bug: Bug, explained: Explain) -> None:
    report = explained(bug)

    assert report.causes, report.sentence
    assert report.causes[0].kind in bug.causes, [
        (cause.kind, cause.confidence) for cause in report.causes
    ]


@each_bug
def test_fixes_are_said_to_help_exactly_where_they_do(bug: Bug, recorded: Capture) -> None:
    results = explain(recorded(bug), fixes=[*bug.prevents, *bug.fails]).fixes

    helped = {result.name for result in results if result.prevents}
    assert set(names(bug, "prevents")) - helped == set(), [
        (result.name, result.nonfinite, result.note) for result in results
    ]
    assert helped & set(names(bug, "fails")) == set()


@pytest.mark.slow
@each_bug
def test_a_fix_that_is_claimed_to_help_helps_in_the_code(bug: Bug, tmp_path: Path) -> None:
    claimed = names(bug, "prevents", "prevents_in_code")
    assert [fix for fix in claimed if bug.run(tmp_path / f"{fix}.h5", fix)] == []


@pytest.mark.slow
@each_bug
def test_a_fix_that_is_claimed_to_fail_fails_in_the_code(bug: Bug, tmp_path: Path) -> None:
    claimed = names(bug, "fails", "fails_in_code")
    assert [fix for fix in claimed if not bug.run(tmp_path / f"{fix}.h5", fix)] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "bug", [pytest.param(bug, id=name) for name, bug in every_bug if bug.prevents]
)
def test_the_fixes_that_come_to_mind_by_themselves_hold_one_that_helps(
    bug: Bug, recorded: Capture
) -> None:
    report = explain(recorded(bug), fixes="all")

    helped = {result.name for result in report.fixes if result.prevents}
    assert helped, report.sentence
    assert helped & set(names(bug, "fails")) == set()
