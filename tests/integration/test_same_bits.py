"""Trainings of all kinds end with the bits of bare ones: a sample of the grid of same_bits.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import tensorflow as tf
import warm_python
from conftest import ROOT, environment

pytestmark = pytest.mark.timeout(1800)  # a hang; it takes a minute

SCRIPT = ROOT / "benchmarks" / "same_bits.py"
SAMPLE, QUICK, SEED = 20, 2, 5
"""Trainings of all groups, of the slow tests; those of every run of the tests, none by XLA."""


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by name, as they do when they run."""
    with monkeypatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield


@pytest.mark.parametrize(
    "quick", [pytest.param(True, id="few"), pytest.param(False, id="all", marks=pytest.mark.slow)]
)
def test_trainings_of_many_groups_end_with_the_bits_of_bare_training(
    quick: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    import same_bits

    rows = sample(quick=quick)
    alone = [[row.title] for row in rows if row.prepare]
    results = []
    for titles in [[row.title for row in rows if not row.prepare], *alone]:
        arguments = [SCRIPT, "--work", json.dumps(titles), "--no-files"]
        done = warm_python.run(arguments, check=True, timeout=1700, env=environment())
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        results += [json.loads(line) for line in lines]
    assert {result["title"] for result in results} == {row.title for row in rows}
    assert same_bits.summary(results) == 0, (results, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_trainings_end_with_the_bits_of_bare_training() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--no-files"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def sample(*, quick: bool = False) -> list[Any]:
    """The trainings that tests compare: few in every run of the tests."""
    import same_bits

    rows = list(same_bits.all_rows().values())
    if quick:
        rows = [row for row in rows if "XLA" not in row.name and row.prepare is None]
    return same_bits.chosen(rows, [], QUICK if quick else SAMPLE, SEED)


def test_every_class_of_keras_that_trains_is_in_the_grid() -> None:
    from same_bits_grid import layer_rows, loss_rows, optimizer_rows

    assert layer_rows.unlisted() == []
    assert optimizer_rows.unlisted() == []
    assert loss_rows.unlisted() == []


def test_the_sample_holds_every_group() -> None:
    import same_bits

    rows = sample()
    assert len(rows) == SAMPLE
    assert {row.group for row in rows} == {row.group for row in same_bits.all_rows().values()}


# What the comparison sees


def compared(train: Any) -> dict[str, Any]:
    """What `compare` says of a training that is not as it is when it is recorded."""
    import same_bits
    from same_bits_grid.training import Row

    return same_bits.compare(Row("made up", "training", train), with_file=False)


def left(value: Any) -> Any:
    from same_bits_grid.training import Trained

    return Trained(variables=[tf.Variable(value, name="weight")])


@pytest.mark.slow
def test_one_bit_of_one_weight_is_a_difference() -> None:
    def train(attach: Any) -> Any:
        return left([1.0, 2.0, 3.0000002 if attach.folder else 3.0])

    assert compared(train)["differs"]["weights"] == {"0 weight:0 0": 1}


@pytest.mark.slow
def test_an_error_that_only_recorded_training_raises_is_a_difference() -> None:
    def train(attach: Any) -> Any:
        if attach.folder:
            raise ValueError("not recorded")
        return left([1.0])

    assert compared(train)["differs"] == {"the rest": {"raised ValueError: not recorded": 1}}


@pytest.mark.slow
def test_a_training_that_differs_from_itself_does_not_count() -> None:
    counted = iter(range(9))
    found = compared(lambda attach: left([float(next(counted))]))
    assert found["remarks"] == ["not deterministic"]
    assert not found["differs"]


def test_a_draw_of_random_numbers_is_a_difference() -> None:
    def train(attach: Any) -> Any:
        if attach.folder:
            tf.random.uniform(())
        return left([1.0])

    differs = compared(train)["differs"]
    assert list(differs["random states"]) == ["next of tf.random"]
