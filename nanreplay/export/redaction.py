"""`redact`: a capture without its data, source lines and paths, that can be shown to others.

Texts lose what names a person, a machine or a folder. Random numbers take the place of data. The
written file is replayed, so that the user knows whether it still gives the same origin.
"""

from __future__ import annotations

import dataclasses
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

from nanreplay.bisect.batch_rows import own_leaves, read_rows
from nanreplay.bisect.sample_parts import RowArray
from nanreplay.capture import Capture, write_capture
from nanreplay.capture.temporary import move_into_place
from nanreplay.capture.writer import lazy_contents
from nanreplay.errors import NanreplayError, ReplayError
from nanreplay.export.cuts import cut_to_steps, with_notes
from nanreplay.export.output_paths import check_output
from nanreplay.export.stand_ins import stand_in
from nanreplay.export.trials import Budget, FailureTrials, place_of
from nanreplay.findings import Origin
from nanreplay.program.anonymous import with_other_numbers, without_texts
from nanreplay.records import BatchRecord, CaptureContents, Frame, Incident, ProgramRecord, Trigger
from nanreplay.replay import Replay
from nanreplay.report.contents import Report
from nanreplay.report.explain import explain

# Texts without what names a person, a machine or a folder.

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
    """Return an incident without the text of an exception and without notes.

    Both may hold anything that the user's code printed.
    """
    trigger = incident.trigger
    if trigger.what in ("exception", "manual"):
        name = trigger.name if trigger.what == "exception" else ""
        trigger = Trigger(trigger.what, name, "(left out)")
    return replace(incident, trigger=trigger, notes=())


Batches: TypeAlias = Literal["statistics", "failing-rows", "none"]
Weights: TypeAlias = Literal["keep", "none"]
_DRAWS = 8
"""How many times stand-ins are drawn until the origin is the same."""
_DRAW_S = 60.0
"""Seconds that finding the origin of one draw may take."""
_FED_NOTE = (
    "What ops gave and was recorded, such as random numbers and results of Python functions, "
    "is random too."
)
_LONG = 16
"""Arrays of a program with more elements may be data."""


@dataclasses.dataclass(frozen=True, slots=True)
class Redacted:
    """What was written."""

    path: str
    output: str
    output_bytes: int
    reproduces: bool | None
    """Whether the written file gives the origin of the capture.

    None when the capture itself gives none.
    """
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
    """Write a capture without the data, the code and the machine that a failure comes from.

    Use it where others are to replay a failure whose data are private.

    ```python
    redact("run.h5", "shared.h5").reproduces
    ```

    Args:
        path: The capture.
        output: The file to write, in one move.
        batches: "statistics" puts random numbers in the place of data, "failing-rows" in that of
            all rows but those that fail, "none" leaves batches out. What does not give the same
            origin is left out too.
        weights: "none" leaves out the state of the model; then nothing can be replayed.
        trust: Let ops that touch files, the network or processes run. Only for captures of your
            own.
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
        reason = _no_rows_reason(before) or ""
        raise ReplayError(
            f"{path}: the rows that fail are not known. {reason} Use --batches statistics."
        )
    target = Path(output).absolute()
    with (
        tempfile.TemporaryDirectory(prefix=".nanreplay-", dir=target.parent) as name,
        Capture(path) as capture,
    ):
        folder = Path(name)
        contents, notes = _anonymous(_cut(capture, origin, trust=trust))
        drawn = None
        if origin is not None and batches != "none" and weights == "keep":
            if say is not None:
                say("drawing numbers in the place of data")
            drawn = _with_stand_ins(contents, origin, batches, folder, trust=trust)
        written_batches = batches if drawn is not None else "none"
        contents = replace(contents, batches={}) if drawn is None else drawn
        if weights == "none":
            contents = replace(contents, keyframes={})
        notes = (*notes, *_notes(contents, written_batches, batches, weights))
        file = folder / "out.h5"
        write_capture(file, with_notes(contents, notes), small=True)
        after = None if drawn is None else _explained(file, trust, None, say)
        move_into_place(file, target)
    reproduces, reason = _compared(before, after, written_batches, weights)
    report = replace(after, path=os.fspath(output)) if isinstance(after, Report) else None
    return Redacted(
        path=os.fspath(path),
        output=os.fspath(output),
        output_bytes=target.stat().st_size,
        reproduces=reproduces,
        reason=reason,
        batches=written_batches,
        weights=weights,
        notes=notes,
        report=report,
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
    except NanreplayError as error:  # what cannot be replayed can still be shared
        return str(error)


def _no_rows_reason(report: Report | str) -> str | None:
    """Why the rows that fail are not known."""
    if isinstance(report, str):
        return report
    origin = report.findings.origin
    return report.findings.reason if origin is None else origin.rows_reason


def _cut(capture: Capture, origin: Origin | None, *, trust: bool) -> CaptureContents:
    """The steps that fail.

    Of a capture without an origin: all but its batches and its earlier keyframes.
    """
    if origin is not None:
        with Replay(capture, trust=trust) as replay:
            return cut_to_steps(replay, origin.step)
    last = {}
    for step in capture.keyframe_steps[-1:]:
        last[step] = capture.keyframe(step)
    return replace(lazy_contents(capture), batches={}, keyframes=last, states={})


def _anonymous(contents: CaptureContents) -> tuple[CaptureContents, tuple[str, ...]]:
    """Contents without what names a person or a machine, and what is to be said of it."""
    notes = ["Source lines, folders, and facts about the machine were left out."]
    if contents.incident.notes:
        notes.append(f"Notes of the recording were left out: {len(contents.incident.notes)}.")
    programs: list[ProgramRecord] = []
    random, texts, arrays = np.random.default_rng(0), 0, 0
    for program in contents.programs:
        without_data, kept_texts = without_texts(program, without_paths)
        without_data, replaced = with_other_numbers(
            without_data, partial(stand_in, random=random), _LONG
        )
        programs.append(without_data)
        texts, arrays = texts + kept_texts, arrays + replaced
    if arrays:
        notes.append(
            f"Arrays that the program holds as constants were replaced by random ones: {arrays}."
        )
    if texts:
        notes.append(f"Texts that ops of the program need were kept, without folders: {texts}.")
    metadata = {}
    for name, text in contents.metadata.items():
        if name in KEPT_METADATA:
            metadata[name] = text
    cleaned = replace(
        contents,
        metadata=metadata,
        programs=programs,
        incident=without_messages(contents.incident),
        frames=without_sources(contents.frames),
    )
    return cleaned, tuple(notes)


def _with_stand_ins(
    contents: CaptureContents, origin: Origin, batches: Batches, folder: Path, *, trust: bool
) -> CaptureContents | None:
    """The contents with random numbers in the place of data.

    None when every draw gave another origin.
    """
    kept_rows_of = origin if batches == "failing-rows" else None
    for draw in range(_DRAWS):
        random = np.random.default_rng(draw)
        redrawn = {}
        for step, batch in contents.batches.items():
            redrawn[step] = _stand_in_batch(batch, kept_rows_of, random)
        draft = replace(contents, batches=redrawn)
        budget = Budget(1, time.monotonic() + _DRAW_S)
        with FailureTrials(draft, folder / f"{draw}", (origin,), budget, trust=trust) as trials:
            if trials.has_origin():
                return trials.with_fingerprints()
    return None


def _stand_in_batch(batch: BatchRecord, origin: Origin | None, random: Generator) -> BatchRecord:
    """A batch of random numbers but for the rows of an origin.

    Fed outputs of ops are random throughout: a row of them may hold the data of another.
    """
    leaves = []
    for leaf in batch.leaves:
        leaves.append(stand_in(np.asarray(leaf), random))
    if origin is not None and origin.rows:
        rows = list(origin.recorded_rows or ())
        places = own_leaves(batch.paths, origin.batch_prefix)
        recorded = [np.asarray(batch.leaves[place]) for place in places]
        samples = read_rows([batch.paths[place] for place in places], recorded)
        for part in samples.parts:
            if isinstance(part, RowArray):
                (own,) = part.positions
                leaves[places[own]][rows] = recorded[own][rows]
    fed = tuple(stand_in(np.asarray(output), random) for output in batch.fed)
    return replace(batch, leaves=tuple(leaves), fed=fed)


def _notes(
    contents: CaptureContents, written: Batches, asked: Batches, weights: Weights
) -> Iterator[str]:
    """What is to be said of batches and weights: as written, and as they were asked for."""
    if written == "statistics":
        yield (
            "The batch holds random numbers with the mean, deviation, range, zeros, NaN and "
            "infinities of the recorded one."
        )
    elif written == "failing-rows":
        yield (
            "The batch holds the rows that fail; the others are random numbers with the "
            "statistics of the recorded ones."
        )
    else:
        failed = ""
        if asked != "none" and weights == "keep":
            failed = " With random numbers in their place the origin is another."
        yield f"Batches were left out, so nothing can be replayed.{failed}"
    if weights == "none":
        yield "The state of the model was left out, so nothing can be replayed."
    if written != "none" and any(batch.fed for batch in contents.batches.values()):
        yield _FED_NOTE


def _compared(
    before: Report | str, after: Report | str | None, written: Batches, weights: Weights
) -> tuple[bool | None, str]:
    """Whether the written file gives the origin of the capture, and why not."""
    if isinstance(before, str):
        return None, f"The capture itself cannot be replayed. {before}"
    recorded = before.findings.origin
    if recorded is None:
        reason = before.findings.reason or before.verdict.reason or ""
        return None, f"The capture itself gives no origin. {reason}".rstrip()
    if after is None:
        is_empty = weights == "none" or written == "none"
        return False, "Nothing is left that can be replayed." if is_empty else ""
    if isinstance(after, str):
        return False, after
    origin = after.findings.origin
    if origin is None or place_of(recorded) != place_of(origin):
        return False, f"The origin is another: {after.sentence}"
    return True, "Replayed: step, phase, layer, op and loop iteration of the origin are the same."
