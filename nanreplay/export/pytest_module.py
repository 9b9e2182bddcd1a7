"""`export`: a pytest module and its capture, that fail as long as the user's current code does.

The test replays the recorded steps with the model that the code makes now (`rerun`), and asserts
that they are finite.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

from nanreplay.capture import Capture, write_capture
from nanreplay.capture.temporary import move_into_place
from nanreplay.capture.writer import lazy_contents
from nanreplay.errors import ReplayError
from nanreplay.export.minimizer import minimize
from nanreplay.export.output_paths import check_output
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain
from nanreplay.rerun import RerunResult, replay_with
from nanreplay.rerun.model_factory import load_factory

_GROWING_CAUSES = frozenset(
    {"exploding_gradient", "high_learning_rate", "bad_init", "loss_scale_stuck"}
)
"""Causes that lie in the steps before the failing one: a fix only shows when these run again."""
_COLUMNS = 100
"""Width of the written module."""
_MODULE = '''"""{title}

Written by `nanreplay export` from {capture}.
"""

from __future__ import annotations

from pathlib import Path

import nanreplay

CAPTURE = Path(__file__).with_name("{file}")
"""{contents}"""
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
    rerun: RerunResult
    """What the test's replay gave now, with the user's current code."""


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
    """Write a test that runs the recorded failure through the current code.

    The test asserts that the steps are finite, so it keeps a fixed failure fixed. The capture
    beside it is the smallest with the same origin. Where the cause lies in the steps before the
    failing one, it holds them all: the code can only keep out of the failure when it runs them.

    ```python
    export_test("run.h5", "tests", "train.py:make_model").rerun.finite
    ```

    Args:
        path: The capture.
        folder: Where the module and its capture go; made when it does not exist.
        model: What makes the current model: `module:function` or `file.py:function`.
        trust: Let ops that touch files, the network or processes run. Only for captures of your
            own.
        force: Replace files that exist.
        progress: Called with (replays done, replays allowed).
        say: Called with a line before each part of the work.

    Raises:
        ModelError: The current model cannot be made, or does not fit the recorded state.
        OutputExistsError: A file exists.
        ReplayError: The capture has no origin that a replay gives.
    """
    say = say or (lambda line: None)
    load_factory(model)  # a wrong name is said before the long work
    report = explain(path, trust=trust, fixes="none", progress=progress, say=say)
    origin = report.findings.origin
    if origin is None:
        reason = report.findings.reason or report.verdict.reason or report.sentence
        raise ReplayError(f"{path}: has no origin to test for. {reason}")
    Path(folder).mkdir(parents=True, exist_ok=True)
    stem = stem_of(report)
    module, capture = Path(folder) / f"test_{stem}.py", Path(folder) / f"{stem}.h5"
    for target in (module, capture):
        check_output(path, target, force=force)
    with tempfile.TemporaryDirectory(prefix=".nanreplay-", dir=folder) as name:
        new_capture, new_module = Path(name) / "small.h5", Path(name) / "module.py"
        if report.causes and report.causes[0].kind in _GROWING_CAUSES:
            contents = _write_whole(path, new_capture)
        else:
            minimize(path, new_capture, trust=trust, progress=progress, say=say)
            contents = f"Step {origin.step} of the recorded training, as small as it still fails."
        say("running it through today's code")
        rerun = replay_with(new_capture, model, trust=trust)
        text = module_text(report, stem, contents, _model_expression(model, module))
        new_module.write_text(text, encoding="utf-8")
        # The capture first: a test whose capture is missing is worse than a capture without a test.
        move_into_place(new_capture, capture)
        move_into_place(new_module, module)
    return Exported(
        module=os.fspath(module),
        capture=os.fspath(capture),
        name=f"test_{stem}",
        capture_bytes=capture.stat().st_size,
        rerun=dataclasses.replace(rerun, path=os.fspath(capture)),
    )


def _write_whole(path: str | os.PathLike[str], output: Path) -> str:
    """Write all steps of a capture; returns a sentence on what the file holds."""
    with Capture(path) as capture:
        write_capture(output, lazy_contents(capture), small=True)
        steps = capture.steps
    return (
        f"Steps {steps[0]} to {steps[-1]} of the recorded training: "
        "what fails in the last began before it."
    )


def stem_of(report: Report) -> str:
    """Return the name of a test after its step, cause and place.

    An example is `step_12_log_of_zero_in_price_head`.
    """
    origin = report.findings.origin
    assert origin is not None
    kind = report.causes[0].kind if report.causes else "other"
    cause = kind if kind != "other" else origin.op_type or "non_finite"
    where = origin.layer_path.split("/")[-1] if origin.layer_path else origin.phase
    return re.sub(r"\W+", "_", f"step_{origin.step}_{cause}_in_{where}").strip("_").lower()


def module_text(report: Report, stem: str, contents: str, model: str) -> str:
    """Return the source of the test module.

    Args:
        report: The failure.
        stem: Name of the test and of its capture.
        contents: A sentence on what the capture holds.
        model: A Python expression for what makes the current model.
    """
    sentence = report.sentence.replace("\\", "\\\\").replace('"""', "'''")
    title = (
        f"Step {report.incident_step} of a recorded training turned non-finite; "
        "today's code must not."
    )
    body = "\n\n".join((title, *map(_wrapped, _paragraphs(sentence))))
    return _MODULE.format(
        title=title,
        capture=Path(report.path).name.replace("\\", "\\\\").replace('"', "'"),
        file=f"{stem}.h5",
        contents=contents,
        model=model,
        name=f"test_{stem}",
        docstring=f"{body}\n    ",
    )


def _paragraphs(sentence: str) -> tuple[str, ...]:
    """What happened, and why."""
    failure, mark, cause = sentence.partition(" Cause: ")
    return (failure, f"Cause: {cause}") if mark else (failure,)


def _wrapped(text: str) -> str:
    """A paragraph of the test's docstring, which is indented by four."""
    lines = textwrap.fill(text, _COLUMNS - 4, break_long_words=False, break_on_hyphens=False)
    return textwrap.indent(lines, "    ")


def _model_expression(model: str, module: Path) -> str:
    """How the test names the factory.

    A file is found by its place beside the test, whatever folder pytest runs in.
    """
    name, _, function = model.rpartition(":")
    if not name.endswith(".py"):
        return _quoted(model)
    relative = os.path.relpath(Path(name).absolute(), module.absolute().parent).replace(os.sep, "/")
    place = f"Path(__file__).parent / {_quoted(relative)}"
    return f"str(({place}).resolve()) + {_quoted(':' + function)}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
