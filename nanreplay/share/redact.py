"""`redact`: a capture without its data, source lines and paths, and whether it still gives the same origin."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from nanreplay.bisect.rows import batch_size, own_leaves
from nanreplay.capture import Capture, write_capture
from nanreplay.capture.rewrite import lazy_contents
from nanreplay.errors import NanreplayError, ReplayError
from nanreplay.findings import Origin, Report
from nanreplay.program.anonymous import with_other_numbers, without_texts
from nanreplay.records import BatchRecord, CaptureContents, ProgramRecord
from nanreplay.replay import Replay
from nanreplay.report.explain import explain
from nanreplay.share.bench import Bench, Budget
from nanreplay.share.cut import cut_to_steps, with_notes
from nanreplay.share.output import check_output
from nanreplay.share.place import place_of
from nanreplay.share.scrub import KEPT_METADATA, without_messages, without_paths, without_sources
from nanreplay.share.stand_in import stand_in

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
        why = before if isinstance(before, str) else before.findings.reason if origin is None else origin.rows_reason
        raise ReplayError(f"{path}: the rows that fail are not known. {why or ''} Use --batches statistics.")
    target = Path(output).absolute()
    with tempfile.TemporaryDirectory(prefix=".nanreplay-", dir=target.parent) as name, Capture(path) as capture:
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


def _explained(path: Any, trust: bool, progress: Callable[[int, int], None] | None, say: Callable[[str], None] | None) -> Report | str:
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
    return dataclasses.replace(whole, batches={}, keyframes={step: capture.keyframe(step) for step in last})


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
        notes.append(f"Arrays that the program holds as constants were replaced by random ones: {arrays}.")
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


def _drawn(contents: CaptureContents, origin: Origin, batches: Batches, folder: Path, *, trust: bool) -> CaptureContents | None:
    """The contents with random numbers in the place of data, None when the origin was another each time."""
    recorded, kept = dict(contents.batches), origin if batches == "failing-rows" else None
    for draw in range(_DRAWS):
        random = np.random.default_rng(draw)
        drawn = dataclasses.replace(contents, batches={step: _other(batch, kept, random) for step, batch in recorded.items()})
        with Bench(drawn, folder / f"{draw}", (origin,), Budget(1, time.monotonic() + 60.0), trust=trust) as bench:
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
    return dataclasses.replace(batch, leaves=tuple(leaves), fed=tuple(stand_in(np.asarray(each), random) for each in batch.fed))


def _notes(held: Batches, asked: Batches, weights: Weights) -> Iterator[str]:
    if held == "statistics":
        yield "The batch holds random numbers with the mean, deviation, range, zeros, NaN and infinities of the recorded one."
    elif held == "failing-rows":
        yield "The batch holds the rows that fail; the others are random numbers with the statistics of the recorded ones."
    else:
        failed = " With random numbers in their place the origin is another." if asked != "none" and weights == "keep" else ""
        yield f"Batches were left out, so nothing can be replayed.{failed}"
    if weights == "none":
        yield "The state of the model was left out, so nothing can be replayed."


def _compared(before: Report | str, after: Report | str | None, held: Batches, weights: Weights) -> tuple[bool | None, str]:
    """Whether the written file gives the origin of the capture, and why not."""
    if isinstance(before, str):
        return None, f"The capture itself cannot be replayed. {before}"
    if before.findings.origin is None:
        return None, f"The capture itself gives no origin. {before.findings.reason or before.verdict.reason or ''}".rstrip()
    if after is None:
        return False, "Nothing is left that can be replayed." if weights == "none" or held == "none" else ""
    if isinstance(after, str):
        return False, after
    one, other = before.findings.origin, after.findings.origin
    if other is None or place_of(one) != place_of(other):
        return False, f"The origin is another: {after.sentence}"
    return True, "Replayed: step, phase, layer, op and loop iteration of the origin are the same."
