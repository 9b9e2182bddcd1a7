"""`export`: a test module with its capture, that fails as long as today's code turns non-finite."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

from nanreplay.capture import Capture, write_capture
from nanreplay.capture.writer import lazy_contents
from nanreplay.errors import ReplayError
from nanreplay.export.minimizer import minimize
from nanreplay.export.output_paths import check_output
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain
from nanreplay.rerun import RerunResult, replay_with
from nanreplay.rerun.model_factory import load_factory

_GROWN = frozenset({"exploding_gradient", "high_learning_rate", "bad_init", "loss_scale_stuck"})
"""Causes that lie in the steps before the failing one: a fix can only show when these run again."""
_WIDTH = 100
_MODULE = '''"""{title}

Written by `nanreplay export` from {capture}.
"""

from __future__ import annotations

from pathlib import Path

import nanreplay

CAPTURE = Path(__file__).with_name("{file}")
"""{held}"""
MODEL = {model}
"""Makes today's model."""


def {name}() -> None:
    """{docstring}"""
    result = nanreplay.replay_with(CAPTURE, MODEL)
    assert result.finite, result.sentence
'''


@dataclasses.dataclass(frozen=True, slots=True)
class Exported:
    """A test that was written."""

    module: str
    """Path of the test module."""
    capture: str
    """Path of its capture, beside it."""
    name: str
    """Name of the test."""
    capture_bytes: int
    today: RerunResult
    """What the test's replay gave now, with today's code."""


def export_test(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    model: str,
    *,
    trust: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Exported:
    """Write a test that runs the recorded failure through today's code and asserts that it is finite.

    The capture beside it is the smallest with the same origin. Where the cause lies in the steps before the failing one, it holds
    them all: today's code can only keep out of the failure when it runs them.

    Args:
        path: The capture.
        folder: Where the module and its capture go; made when it does not exist.
        model: What makes today's model: `module:function` or `file.py:function`.
        trust: Let ops that touch files, the network or processes run; only for captures of your own.
        force: Replace files that exist.
        progress: Called with (replays done, replays allowed).
        say: Called with a line before each part of the work.

    Raises:
        ModelError: Today's model cannot be made, or does not fit the recorded state.
        OutputExistsError: A file exists.
        ReplayError: The capture has no origin that a replay gives.
    """
    tell = say or (lambda line: None)
    load_factory(model)  # a wrong name is said before the long work
    report = explain(path, trust=trust, fixes="none", progress=progress, say=say)
    if report.findings.origin is None:
        raise ReplayError(
            f"{path}: has no origin to test for. {report.findings.reason or report.verdict.reason or report.sentence}"
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    stem = stem_of(report)
    module, capture = Path(folder) / f"test_{stem}.py", Path(folder) / f"{stem}.h5"
    for target in (module, capture):
        check_output(path, target, force=force)
    with tempfile.TemporaryDirectory(prefix=".nanreplay-", dir=folder) as name:
        small = Path(name) / "small.h5"
        if report.causes and report.causes[0].kind in _GROWN:
            held = _write_whole(path, small)
        else:
            minimize(path, small, trust=trust, progress=progress, say=say)
            held = f"Step {report.findings.origin.step} of the recorded training, as small as it still fails."
        tell("running it through today's code")
        today = dataclasses.replace(replay_with(small, model, trust=trust), path=os.fspath(capture))
        text = module_text(report, stem, held, _model_in_test(model, module))
        (Path(name) / "module.py").write_text(text, encoding="utf-8")
        os.replace(small, capture)
        os.replace(Path(name) / "module.py", module)
    return Exported(
        os.fspath(module), os.fspath(capture), f"test_{stem}", capture.stat().st_size, today
    )


def _write_whole(path: str | os.PathLike[str], output: Path) -> str:
    """Write all steps of a capture; returns what the file holds."""
    with Capture(path) as capture:
        write_capture(output, lazy_contents(capture), small=True)
        steps = capture.steps
    return f"Steps {steps[0]} to {steps[-1]} of the recorded training: what fails in the last began before it."


def stem_of(report: Report) -> str:
    """Return the name of a test after its step, cause and place: `step_12_log_of_zero_in_price_head`."""
    origin = report.findings.origin
    assert origin is not None
    cause = (
        next((each.kind for each in report.causes[:1] if each.kind != "other"), None)
        or f"{origin.op_type or 'non_finite'}"
    )
    where = origin.layer_path.split("/")[-1] if origin.layer_path else origin.phase
    return re.sub(r"\W+", "_", f"step_{origin.step}_{cause}_in_{where}").strip("_").lower()


def module_text(report: Report, stem: str, held: str, model: str) -> str:
    """Return the source of the test module."""
    sentence = report.sentence.replace("\\", "\\\\").replace('"""', "'''")
    first = f"Step {report.incident_step} of a recorded training turned non-finite; today's code must not."
    body = "\n\n".join((first, *(_wrapped(part) for part in _parts(sentence))))
    return _MODULE.format(
        title=first,
        capture=Path(report.path).name.replace("\\", "\\\\").replace('"', "'"),
        file=f"{stem}.h5",
        held=held,
        model=model,
        name=f"test_{stem}",
        docstring=f"{body}\n    ",
    )


def _parts(sentence: str) -> tuple[str, ...]:
    """What happened, and why."""
    what, mark, why = sentence.partition(" Cause: ")
    return (what, f"Cause: {why}") if mark else (what,)


def _wrapped(text: str) -> str:
    return textwrap.indent(
        textwrap.fill(text, _WIDTH - 4, break_long_words=False, break_on_hyphens=False), "    "
    )


def _model_in_test(model: str, module: Path) -> str:
    """How the test names the factory: a file by its place beside the test, whatever folder pytest runs in."""
    name, _, function = model.rpartition(":")
    if not name.endswith(".py"):
        return _quoted(model)
    relative = os.path.relpath(Path(name).absolute(), module.absolute().parent).replace(os.sep, "/")
    place = f"Path(__file__).parent / {_quoted(relative)}"
    return f"str(({place}).resolve()) + {_quoted(':' + function)}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
