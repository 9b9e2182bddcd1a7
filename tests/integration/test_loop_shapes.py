"""Every ordinary shape of a training loop: trained as without a recorder, recorded when it fails.

The shapes are in the package `loop_shapes`. By default five sixteenths of them are trained once in
their `tf.function` column: an eighth is compared with training without a recorder, of an eighth the
capture is explained, a sixteenth is recorded. `-m slow` has all the rest.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from loop_shapes import COLUMNS, GRAPH, SHAPES, Run, Shape

from nanreplay import Capture
from nanreplay.commands import run_command_line

SAID = "nanreplay"
"""What every line of the recorder's holds."""
PAIRS = 4
"""How often a shape may train, with and without a recorder, until both end with the same bits:
TensorFlow adds up three gradients from the first whose buffer is free, which threads decide. Of the
bare trainings of one shape one in sixty ends with other bits than the rest."""


def cases(default: Any, *, repeated: bool = False) -> Any:
    """All shapes in all their columns; those of which `default` is false are slow tests.

    With `repeated`, without those that train otherwise each time.
    """
    return pytest.mark.parametrize(
        ("shape", "column"),
        [
            pytest.param(
                shape,
                column,
                id=f"{name}-{column}",
                marks=() if default(shape, column) else pytest.mark.slow,
            )
            for name, shape in SHAPES.items()
            for column in shape.columns
            if shape.repeats(column) or not repeated
        ],
    )


PLACES = {name: place for place, name in enumerate(SHAPES)}


def is_quick(shape: Shape, column: str) -> bool:
    return column == GRAPH and not shape.slow


def is_explained(shape: Shape, column: str) -> bool:
    return is_quick(shape, column) and PLACES[shape.name] % 8 == 0


def is_compared(shape: Shape, column: str) -> bool:
    return is_quick(shape, column) and PLACES[shape.name] % 8 == 2


def is_only_recorded(shape: Shape, column: str) -> bool:
    return is_quick(shape, column) and PLACES[shape.name] % 16 == 4


@dataclass
class Trained:
    """What came of a training."""

    arrays: list[Any]
    """All variables that the shape returns, in their order."""
    said: list[str]
    """Lines of the recorder's, on stderr, on stdout and in warnings."""
    files: list[str]
    """What the folder for captures holds."""


@pytest.fixture(autouse=True)
def _no_layers_of_other_tests() -> Iterator[None]:
    yield
    keras.backend.clear_session(free_memory=False)


def trained(shape: Shape, column: str, *, fails: bool, folder: Path | None = None) -> Trained:
    """Train a shape, recorded when there is a folder for it."""
    keras.backend.clear_session(free_memory=False)
    run = Run(column, fails=fails, folder=folder)
    streams = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as stack:
        warnings.simplefilter("always")
        stack.enter_context(contextlib.redirect_stderr(streams))
        stack.enter_context(contextlib.redirect_stdout(streams))
        parts = list(shape.train(run))
        run.close()
    lines = [*streams.getvalue().splitlines(), *(str(warning.message) for warning in caught)]
    return Trained(
        arrays=[np.asarray(variable) for part in parts for variable in variables_of(part)],
        said=[line for line in lines if SAID in line],
        files=sorted(os.listdir(folder)) if folder else [],
    )


def differences(one: Trained, other: Trained) -> list[int]:
    """Which variables do not have the same bits."""
    pairs = zip(one.arrays, other.arrays, strict=True)
    return [place for place, (left, right) in enumerate(pairs) if left.tobytes() != right.tobytes()]


def variables_of(part: Any) -> list[Any]:
    """Those of a model, an optimizer or a metric; a variable is its own."""
    return getattr(part, "weights", None) or getattr(part, "variables", None) or [part]


def recorded_failure(shape: Shape, column: str, folder: Path) -> list[Path]:
    """Train until it fails; checks what is left, and returns the captures."""
    failed = trained(shape, column, fails=True, folder=folder)
    if shape.may_refuse and not failed.files:
        assert len(failed.said) == 1, f"said {failed.said}"
        return []
    assert failed.files == [f"{stem}.h5" for stem in shape.files], f"said {failed.said}"
    paths = [folder / file for file in failed.files]
    for path in paths:
        with Capture(path) as capture:
            step = capture.incident.step
        assert step == shape.expected(column).get("step", step)
    assert len(failed.said) == len(paths), "besides the incident nothing is said"
    return paths


def report_on(path: Path) -> dict[str, Any]:
    """What `nanreplay bisect --json` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = run_command_line(["bisect", "--no-fixes", "--json", str(path)])
    report: dict[str, Any] = json.loads(printed.getvalue())
    assert code == 1, report["sentence"]
    return report


def facts(report: dict[str, Any]) -> dict[str, Any]:
    """What a report says of the origin, by the names that shapes expect."""
    origin = report["origin"]
    assert origin is not None, report["sentence"]
    return {
        "step": origin["step"],
        "op": origin["op_type"],
        "layer": origin["layer"],
        "rows": origin["rows"],
        "loop": [loop["iteration"] for loop in origin["loop"]],
    }


@cases(is_compared, repeated=True)
def test_a_healthy_loop_trains_the_same_bits(shape: Shape, column: str, tmp_path: Path) -> None:
    differ: list[list[int]] = []
    while len(differ) < PAIRS and (not differ or differ[-1]):
        recorded = trained(shape, column, fails=False, folder=tmp_path)
        differ.append(differences(trained(shape, column, fails=False), recorded))
        assert recorded.files == []
        assert len(recorded.said) <= shape.may_refuse, recorded.said

    assert not differ[-1], f"variables that differ, pair by pair: {differ}"


@cases(is_only_recorded)
def test_a_loop_that_fails_leaves_its_file(shape: Shape, column: str, tmp_path: Path) -> None:
    recorded_failure(shape, column, tmp_path)


@cases(is_explained)
def test_the_file_of_a_loop_names_what_failed(shape: Shape, column: str, tmp_path: Path) -> None:
    expected = shape.expected(column)
    for path in recorded_failure(shape, column, tmp_path):
        report = report_on(path)
        found = facts(report)
        if shape.unproved and found["rows"] is None:
            found["rows"] = expected["rows"]
        assert {key: found[key] for key in expected} == expected, report["sentence"]
        assert report["verdict"]["bit_exact"] is True, report["verdict"]


def test_the_table_of_shapes_is_whole() -> None:
    assert len(SHAPES) > 100
    for shape in SHAPES.values():
        assert shape.columns, shape.name
        assert set(shape.left_out) <= set(COLUMNS)
        assert all(reason for reason in shape.left_out.values())
