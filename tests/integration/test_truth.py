"""Every statement of a report that running can check, checked by running: the project's own bugs
and the sample runs, trained again in plain TensorFlow and Keras without nanreplay.

`python -m pytest -m slow -n 0 -s tests/integration/test_truth.py` prints how many statements there
were of each kind, and how many were true; `docs/benchmarks.md` quotes it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from bugs import BUGS
from told_fixes import Script, fix_statements
from told_statements import Statement, statements

from nanreplay.report.explain import explain

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SAMPLE_RUNS = Path(__file__).resolve().parents[2] / "sample_runs"
NAMES = sorted(path.stem for path in SAMPLE_RUNS.glob("*.py") if path.stem != "regenerate")
TrainedHere = Callable[[str], Path]


@pytest.fixture(scope="module")
def tally() -> Iterator[Counter[tuple[str, bool]]]:
    """How many statements of each kind were true, and how many false; printed in the end."""
    counts: Counter[tuple[str, bool]] = Counter()
    yield counts
    kinds = sorted({kind for kind, _ in counts})
    print("\n| statements of | checked | true |\n|---|---:|---:|")
    for kind in kinds:
        print(f"| {kind} | {counts[kind, True] + counts[kind, False]} | {counts[kind, True]} |")
    true = sum(count for (_, is_true), count in counts.items() if is_true)
    print(f"| all | {counts.total()} | {true} |")


def false_ones(path: Path, script: Script, tally: Counter[tuple[str, bool]]) -> list[Statement]:
    """Check all that is said of a capture; returns what is false."""
    report = explain(path)
    assert report.findings.origin is not None, report.sentence
    found = [*statements(report, partial(script.train)), *fix_statements(report, script)]
    tally.update((statement.kind, statement.is_true) for statement in found)
    assert len(found) > 5
    return [statement for statement in found if not statement.is_true]


@pytest.mark.parametrize("name", sorted(BUGS))
def test_what_is_said_of_a_bug_is_true(
    name: str, tmp_path: Path, tally: Counter[tuple[str, bool]]
) -> None:
    bug = BUGS[name]
    source = sys.modules[bug.train.__module__].__file__
    assert source is not None
    assert bug.run(tmp_path / "run.h5"), "nothing turned non-finite"

    assert false_ones(tmp_path / "run.h5", Script(Path(source), name), tally) == []


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_a_sample_run_is_true(
    name: str, trained_here: TrainedHere, tally: Counter[tuple[str, bool]]
) -> None:
    script = Script(SAMPLE_RUNS / f"{name}.py", "main", is_bug=False)

    assert false_ones(trained_here(name), script, tally) == []
