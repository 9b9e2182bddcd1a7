"""Fixes that a report tells, written into the code of a training by their machine-readable edits
alone, and trained: does each do what is said of it?"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from unittest import mock

import bugs.base
import keras
import numpy as np
import tensorflow as tf
from plain_training import Batch, EagerStep, PlainRecorder, Step, run_plain
from told_statements import Statement
from told_step import maker_of, same

from nanreplay.findings import FixResult
from nanreplay.report.contents import Report
from nanreplay.report.fix_words import fix_label

_LATER = 1
"""Steps that are trained beyond those that the report speaks of, where there are any."""


@dataclass(frozen=True)
class Script:
    """A training as source code."""

    path: Path
    function: str
    """The function that trains: `main()` of a script, `train(path, fix)` of a bug."""
    is_bug: bool = True

    def train(self, recorder: PlainRecorder, text: str | None = None) -> None:
        """Run it with `recorder` in the place of nanreplay's, from another text if one is given."""
        with ExitStack() as stack:
            path = self.path
            if text is not None:  # in a file: AutoGraph reads the source of a function from there
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                path = Path(folder) / path.name
                path.write_text(text, encoding="utf-8")
            # lines that are told say `tf`, which a script need not have imported
            names: dict[str, Any] = {
                "__name__": f"{path.stem}_anew",
                "__file__": str(path),
                "tf": tf,
            }
            stack.enter_context(mock.patch.dict(bugs.BUGS))
            stack.enter_context(mock.patch.object(bugs.base, "Recorder", recorder))
            exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
            if not self.is_bug:
                names["Recorder"] = recorder
            names[self.function](*((Path("nowhere"), None) if self.is_bug else ()))


def fix_statements(report: Report, script: Script) -> Iterator[Statement]:
    """Train with each fix that the report tells, as it tells it; those told in words are left."""
    for fix in report.fixes:
        if fix.outcome in (None, "skips") or not _is_told(fix):
            continue
        for text, is_true in _checked(report, fix, script):
            yield Statement(f"fix {fix.outcome}", f"`{fix_label(fix)}` {text}", bool(is_true))


def _is_told(fix: FixResult) -> bool:
    """Whether its recipe can be applied by a machine, and from the step on in which it was tried.

    An optimizer has its arguments from the first step on; a window may begin later.
    """
    first = 0 if fix.steps_checked is None else fix.steps_checked[0]
    acts_before = first > 0 and any("optimizer" in edit for edit in fix.edits)
    return bool(fix.edits) and "+" not in fix.name and not acts_before


def _checked(report: Report, fix: FixResult, script: Script) -> Iterator[tuple[str, bool]]:
    assert fix.steps_checked is not None
    last = fix.steps_checked[1]
    run = trained_with(fix, script, PlainRecorder(last=last + _LATER))
    if fix.outcome in ("prevents", "unhealthy"):
        is_alive = run.bad_after is None or run.bad_after > last
        yield f"keeps steps 0 to {last} finite", is_alive and len(run.losses) > last
        if is_alive and fix.final_loss is not None and fix.name not in ("init", "float32"):
            yield f"ends at a loss of {fix.final_loss:.6g}", _near(run.losses[last], fix.final_loss)
        return
    if report.trigger.what == "gradient" and run.bad_after is None:
        return  # a loss scale hides such gradients from losses and weights
    yield f"does not keep steps 0 to {last} finite", run.bad_after is not None
    if fix.nonfinite_step is not None and fix.nonfinite is not None:
        yield f"fails at step {fix.nonfinite_step}", run.bad_after == fix.nonfinite_step
    if fix.moved_to is not None:
        found: list[EagerStep] = []
        look = _looking(found)
        trained_with(fix, script, PlainRecorder(at=fix.moved_to.step, look=look))
        moved = fix.moved_to
        is_there = bool(found) and maker_of(moved, found[0]) is not None
        yield f"moves it to {moved.op_type} of step {moved.step}", is_there


def _looking(found: list[EagerStep]) -> Callable[[Step, Batch], None]:
    return lambda step, batch: found.append(step(batch))


def _near(found: float, told: float) -> bool:
    return same(told, found) or abs(found - told) <= 0.02 * abs(told)


def trained_with(fix: FixResult, script: Script, recorder: PlainRecorder) -> PlainRecorder:
    """Run a training with a fix in its code and in what it is given."""
    recorder.begun = lambda optimizer: _set_arguments(optimizer, fix)
    recorder.prepared = lambda step, batch: _changed_batch(fix, step, batch)
    text = _changed_text(script, fix) if _changes_text(fix) else None
    with ExitStack() as stack:
        if any("policy" in edit for edit in fix.edits):
            policy = keras.mixed_precision.set_global_policy
            only = mock.Mock(side_effect=lambda name: policy("float32"))
            stack.enter_context(mock.patch.object(keras.mixed_precision, "set_global_policy", only))
        run_plain(lambda: script.train(recorder, text), recorder)
    return recorder


def _changes_text(fix: FixResult) -> bool:
    return any({"line", "activation", "variables"} & set(edit) for edit in fix.edits)


def _changed_text(script: Script, fix: FixResult) -> str:
    """The source with lines, activations and initializers as the edits have them."""
    text = script.path.read_text(encoding="utf-8")
    for edit in fix.edits:
        if "line" in edit:
            assert PurePath(edit["file"]).name == script.path.name, edit
            lines = text.splitlines()
            assert lines[edit["line"] - 1].strip() == edit["old"], edit
            lines[edit["line"] - 1] = lines[edit["line"] - 1].replace(edit["old"], edit["new"])
            text = "\n".join(lines)
        elif "activation" in edit:
            layer = f"keras.layers.LeakyReLU(negative_slope={edit['negative_slope']})"
            text = text.replace('"relu"', layer).replace("tf.nn.relu", layer)
        elif "variables" in edit:
            text = re.sub(
                rf"\b{edit['argument']}=[\w.]+(\([^()]*(\([^()]*\)[^()]*)*\))?",
                f'{edit["argument"]}="{edit["value"]}"',
                text,
            )
    return text


def _set_arguments(optimizer: Any, fix: FixResult) -> None:
    """Give an optimizer the arguments that the edits tell, before its first step."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    for edit in (edit for edit in fix.edits if "optimizer" in edit):
        value = edit.get("value", edit.get("learning_rate"))
        if edit["argument"] in bugs.base.CLIPPING:
            for name in bugs.base.CLIPPING:  # Keras takes one of them
                setattr(optimizer, name, None)
        if value is None:  # a schedule
            optimizer.learning_rate = _Scaled(optimizer._learning_rate, edit["factor"])
        else:
            setattr(optimizer, edit["argument"], value)


class _Scaled(keras.optimizers.schedules.LearningRateSchedule):
    """A part of another schedule."""

    def __init__(self, whole: Any, factor: float) -> None:
        self.whole, self.factor = whole, factor

    def __call__(self, step: Any) -> Any:
        return self.factor * self.whole(step)


def _changed_batch(fix: FixResult, step: int, batch: Batch) -> Batch:
    """A batch after the lines that the fix tells have run on it, in the steps that they are of."""
    steps = [edit["step"] for edit in fix.edits if "step" in edit]
    of_batch = any("array" in edit or "rows" in edit for edit in fix.edits)
    if not of_batch or (steps and step not in steps):
        return batch
    names = {"batch": _as_lists(batch), "np": np, "tf": tf}
    exec(str(fix.code), names)
    return tf.nest.pack_sequence_as(batch, tf.nest.flatten(names["batch"]))


def _as_lists(batch: Batch) -> Any:
    if isinstance(batch, (tuple, list)):
        return [_as_lists(part) for part in batch]
    if isinstance(batch, Mapping):
        return {name: _as_lists(part) for name, part in batch.items()}
    return batch
