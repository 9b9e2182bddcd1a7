"""`redact`: a capture without its data, source lines and paths, and whether it still gives the same origin."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.random import Generator

from nanreplay.bisect.row_proof import batch_size, own_leaves
from nanreplay.capture import Capture, write_capture
from nanreplay.capture.writer import lazy_contents
from nanreplay.errors import NanreplayError, ReplayError
from nanreplay.export.cuts import cut_to_steps, with_notes
from nanreplay.export.output_paths import check_output
from nanreplay.export.trials import Budget, FailureTrials, place_of
from nanreplay.findings import Origin
from nanreplay.program.anonymous import with_other_numbers, without_texts
from nanreplay.records import BatchRecord, CaptureContents, Frame, Incident, ProgramRecord, Trigger
from nanreplay.replay import Replay
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain

# Taking what names a person, a machine or a folder out of texts. Pure.

KEPT_METADATA = (
    "nanreplay",
    "tensorflow",
    "keras",
    "numpy",
    "h5py",
    "python",
    "machine",
    "onednn",
    "deterministic_ops",
)
"""Facts that a replay depends on and that name nobody."""
_PATH = re.compile(
    r"(?:(?<![\w.])(?:~|[A-Za-z]:|[\w.@+-]+:/?))?(?<!\w)[\\/](?:[^\s\\/'\"`<>|:;,()\[\]{}]+[\\/])+"
)
"""Folders before a name: `/home/me/run/`, `C:\\Users\\me\\`, `host:/data/`."""


def without_paths(text: str) -> str:
    """Return a text whose paths are base names."""
    return _PATH.sub("", text)


def base_name(path: str) -> str:
    """Return the last part of a path of any system."""
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name


def without_sources(frames: Sequence[Frame]) -> list[Frame]:
    """Return frames that name files without folders and hold no line of code."""
    return [replace(frame, file=base_name(frame.file), code=None) for frame in frames]


def without_messages(incident: Incident) -> Incident:
    """Return an incident without the text of an exception and without notes: both may hold anything."""
    trigger = incident.trigger
    if trigger.what in ("exception", "manual"):
        trigger = Trigger(
            trigger.what, trigger.name if trigger.what == "exception" else "", "(left out)"
        )
    return replace(incident, trigger=trigger, notes=())


# Random arrays in the place of data: of the same type, shape, mean, deviation and range, and with
# the same special values. Pure.

DIGITS = 3
"""Significant digits of the statistics that are kept: no number of the data is among the stand-ins but by chance."""


def stand_in(array: Any, random: Generator) -> Any:
    """Return an array that tells no more of another than its statistics.

    Floats are drawn from a normal distribution with the mean and deviation of the finite elements other than 0, within their
    range; NaN, infinities and zeros stay in their places. Integers are drawn evenly from the range, zeros stay. Of booleans, and
    of arrays with one value besides zero (masks, one-hot labels), the rows are shuffled. Texts keep their length.

    Args:
        array: Any array of a batch.
        random: Where random numbers come from.
    """
    kind = array.dtype.kind
    if array.size == 0:
        return array
    if kind in "OSU":
        return _texts(array)
    if kind == "c":
        return (stand_in(array.real, random) + 1j * stand_in(array.imag, random)).astype(
            array.dtype
        )
    wide = array.astype(np.float64) if kind not in "biu" else array
    ordinary = np.isfinite(wide) & (wide != 0) if kind not in "biu" else wide != 0
    made = wide.copy()
    if kind == "b" or len(np.unique(wide[ordinary])) <= 1:
        if kind not in "biu":
            made[ordinary] = [_rounded(value) for value in wide[ordinary]]
        return (
            random.permutation(made, axis=0).astype(array.dtype)
            if array.ndim
            else made.astype(array.dtype)
        )
    if kind in "iu":
        low, high = int(wide[ordinary].min()), int(wide[ordinary].max())
        drawn = random.integers(low, high, int(ordinary.sum()), dtype=array.dtype, endpoint=True)
        made[ordinary] = np.where(drawn == 0, np.asarray(high or low, array.dtype), drawn)
    else:
        made[ordinary] = _normal(wide[ordinary], random)
    return made.astype(array.dtype)


def _normal(values: Any, random: Generator) -> Any:
    scale = float(np.abs(values).max())
    scaled = values / scale  # squares of large numbers overflow
    mean, deviation = _rounded(float(scaled.mean())), _rounded(float(scaled.std()))
    low, high = _rounded(float(values.min())), _rounded(float(values.max()))
    drawn = np.clip(
        (mean + deviation * random.standard_normal(values.size)) * _rounded(scale), low, high
    )
    if values.size > 1:  # the range itself is what many failures are about
        first, last = random.choice(values.size, 2, replace=False)
        drawn[first], drawn[last] = low, high
    return drawn


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS - 1}e}") if math.isfinite(value) else value


def _texts(array: Any) -> Any:
    made = np.empty(array.shape, object)
    for index, item in np.ndenumerate(array):
        made[index] = b"x" * len(item if isinstance(item, bytes) else str(item).encode())
    return made


# --- share.redact

Batches: TypeAlias = Literal["statistics", "failing-rows", "none"]
Weights: TypeAlias = Literal["keep", "none"]
_DRAWS = 8
"""How many times stand-ins are drawn until the origin is the same."""
_GIVEN = "What ops gave and was recorded, such as random numbers and results of Python functions, is random too."
_LONG = 16
"""Arrays of a program with more elements may be data."""


@dataclasses.dataclass(frozen=True, slots=True)
class Redacted:
    """What was written."""

    path: str
    output: str
    output_bytes: int
    reproduces: bool | None
    """Whether the written file gives the origin of the capture; None when the capture itself gives none."""
    reason: str
    """How that is known, or why it does not."""
    batches: Batches
    """What the file holds of batches: as asked for, or none."""
    weights: Weights
    notes: tuple[str, ...]
    """What was left out, in readable lines, which are in the file too."""
    report: Report | None
    """What the written file says; None when it cannot be replayed at all."""


def redact(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    batches: Batches = "statistics",
    weights: Weights = "keep",
    trust: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Redacted:
    """Write a capture that tells of a failure without the data, the code and the machine that it comes from.

    ```python
    redact("run.h5", "shared.h5").reproduces
    ```

    Args:
        path: The capture.
        output: The file to write, in one move.
        batches: "statistics" puts random numbers in the place of data, "failing-rows" in that of all rows but those that fail,
            "none" leaves batches out. What does not give the same origin is left out too.
        weights: "none" leaves out the state of the model; then nothing can be replayed.
        trust: Let ops that touch files, the network or processes run; only for captures of your own.
        force: Replace an existing file.
        progress: Called with (steps done, steps in all).
        say: Called with a line before each part of the work.

    Raises:
        OutputExistsError: The file exists.
        ReplayError: The failing rows were asked for and are not known.
    """
    check_output(path, output, force=force)
    before = _explained(path, trust, progress, say)
    origin = None if isinstance(before, str) else before.findings.origin
    if batches == "failing-rows" and (origin is None or not origin.rows):
        why = (
            before
            if isinstance(before, str)
            else before.findings.reason
            if origin is None
            else origin.rows_reason
        )
        raise ReplayError(
            f"{path}: the rows that fail are not known. {why or ''} Use --batches statistics."
        )
    target = Path(output).absolute()
    with (
        tempfile.TemporaryDirectory(prefix=".nanreplay-", dir=target.parent) as name,
        Capture(path) as capture,
    ):
        folder = Path(name)
        contents, notes = _anonymous(_cut(capture, origin, trust=trust))
        held: Batches = "none"
        if origin is not None and batches != "none" and weights == "keep":
            (say or str)("drawing numbers in the place of data")
            drawn = _drawn(contents, origin, batches, folder, trust=trust)
            contents, held = (contents, "none") if drawn is None else (drawn, batches)
        if held == "none":
            contents = dataclasses.replace(contents, batches={})
        if weights == "none":
            contents = dataclasses.replace(contents, keyframes={})
        given = held != "none" and any(batch.fed for batch in contents.batches.values())
        notes = (*notes, *_notes(held, batches, weights), *([_GIVEN] if given else []))
        file = folder / "out.h5"
        write_capture(file, with_notes(contents, notes), small=True)
        after = None if held == "none" else _explained(file, trust, None, say)
        os.replace(file, target)
    reproduces, reason = _compared(before, after, held, weights)
    report = after if isinstance(after, Report) else None
    size = target.stat().st_size
    return Redacted(
        os.fspath(path),
        os.fspath(output),
        size,
        reproduces,
        reason,
        held,
        weights,
        notes,
        report and dataclasses.replace(report, path=os.fspath(output)),
    )


def _explained(
    path: Any,
    trust: bool,
    progress: Callable[[int, int], None] | None,
    say: Callable[[str], None] | None,
) -> Report | str:
    """The report of a capture, or why there is none."""
    try:
        return explain(path, trust=trust, fixes="none", progress=progress, say=say)
    except NanreplayError as error:
        return str(error)


def _cut(capture: Capture, origin: Origin | None, *, trust: bool) -> CaptureContents:
    """The steps that fail; of a capture without an origin all but its batches and its earlier keyframes."""
    if origin is not None:
        with Replay(capture, trust=trust) as replay:
            return cut_to_steps(replay, origin.step)
    whole = lazy_contents(capture)
    last = capture.keyframe_steps[-1:]
    return dataclasses.replace(
        whole, batches={}, keyframes={step: capture.keyframe(step) for step in last}
    )


def _anonymous(contents: CaptureContents) -> tuple[CaptureContents, tuple[str, ...]]:
    """Contents without what names a person or a machine, and what is to be said of it."""
    notes = ["Source lines, folders, and facts about the machine were left out."]
    if contents.incident.notes:
        notes.append(f"Notes of the recording were left out: {len(contents.incident.notes)}.")
    programs: list[ProgramRecord] = []
    random, texts, arrays = np.random.default_rng(0), 0, 0
    for program in contents.programs:
        quiet, left = without_texts(program, without_paths)
        quiet, changed = with_other_numbers(quiet, partial(stand_in, random=random), _LONG)
        programs.append(quiet)
        texts, arrays = texts + left, arrays + changed
    if arrays:
        notes.append(
            f"Arrays that the program holds as constants were replaced by random ones: {arrays}."
        )
    if texts:
        notes.append(f"Texts that ops of the program need were kept, without folders: {texts}.")
    metadata = {name: text for name, text in contents.metadata.items() if name in KEPT_METADATA}
    cleaned = dataclasses.replace(
        contents,
        metadata=metadata,
        programs=programs,
        incident=without_messages(contents.incident),
        frames=without_sources(contents.frames),
    )
    return cleaned, tuple(notes)


def _drawn(
    contents: CaptureContents, origin: Origin, batches: Batches, folder: Path, *, trust: bool
) -> CaptureContents | None:
    """The contents with random numbers in the place of data, None when the origin was another each time."""
    recorded, kept = dict(contents.batches), origin if batches == "failing-rows" else None
    for draw in range(_DRAWS):
        random = np.random.default_rng(draw)
        drawn = dataclasses.replace(
            contents,
            batches={step: _other(batch, kept, random) for step, batch in recorded.items()},
        )
        with FailureTrials(
            drawn, folder / f"{draw}", (origin,), Budget(1, time.monotonic() + 60.0), trust=trust
        ) as bench:
            if bench.has_origin():
                return bench.with_fingerprints()
    return None


def _other(batch: BatchRecord, kept: Origin | None, random: Any) -> BatchRecord:
    """A batch of random numbers but for the rows of an origin. What ops gave is random: a row of it may hold another one's data."""
    leaves = [stand_in(np.asarray(leaf), random) for leaf in batch.leaves]
    if kept is not None and kept.rows:
        places = own_leaves(batch.paths, kept.batch_prefix)
        recorded = {place: np.asarray(batch.leaves[place]) for place in places}
        size = batch_size(list(recorded.values()))
        for place, array in recorded.items():
            if array.ndim and array.shape[0] == size:
                leaves[place][list(kept.rows)] = array[list(kept.rows)]
    return dataclasses.replace(
        batch,
        leaves=tuple(leaves),
        fed=tuple(stand_in(np.asarray(each), random) for each in batch.fed),
    )


def _notes(held: Batches, asked: Batches, weights: Weights) -> Iterator[str]:
    if held == "statistics":
        yield "The batch holds random numbers with the mean, deviation, range, zeros, NaN and infinities of the recorded one."
    elif held == "failing-rows":
        yield "The batch holds the rows that fail; the others are random numbers with the statistics of the recorded ones."
    else:
        failed = (
            " With random numbers in their place the origin is another."
            if asked != "none" and weights == "keep"
            else ""
        )
        yield f"Batches were left out, so nothing can be replayed.{failed}"
    if weights == "none":
        yield "The state of the model was left out, so nothing can be replayed."


def _compared(
    before: Report | str, after: Report | str | None, held: Batches, weights: Weights
) -> tuple[bool | None, str]:
    """Whether the written file gives the origin of the capture, and why not."""
    if isinstance(before, str):
        return None, f"The capture itself cannot be replayed. {before}"
    if before.findings.origin is None:
        return (
            None,
            f"The capture itself gives no origin. {before.findings.reason or before.verdict.reason or ''}".rstrip(),
        )
    if after is None:
        return (
            False,
            "Nothing is left that can be replayed." if weights == "none" or held == "none" else "",
        )
    if isinstance(after, str):
        return False, after
    one, other = before.findings.origin, after.findings.origin
    if other is None or place_of(one) != place_of(other):
        return False, f"The origin is another: {after.sentence}"
    return True, "Replayed: step, phase, layer, op and loop iteration of the origin are the same."
