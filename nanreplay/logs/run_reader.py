"""Logs and checkpoints of paths, read and put together as runs.

`read_runs` is what the command line and the terminal interface call.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nanreplay.capture.tables import readable
from nanreplay.errors import NanreplayError
from nanreplay.logs.checkpoint_files import read_checkpoint
from nanreplay.logs.console_logs import read_console
from nanreplay.logs.event_files import EventFile, read_event_file
from nanreplay.logs.log_discovery import FoundFile, find_files, is_checkpoint
from nanreplay.logs.log_places import in_order
from nanreplay.logs.logged_run import Axis, Checkpoint, LoggedRun, Numbers, ScalarSeries
from nanreplay.logs.tabular_logs import read_csv, read_json, read_json_lines
from nanreplay.logs.tag_roles import loss_rank, role_of
from nanreplay.logs.tracker_files import read_mlflow, read_wandb

_DAMAGE = (OSError, ValueError, RuntimeError, KeyError, IndexError, MemoryError, RecursionError)
_TEXTS = ("json", "json_lines", "console")
_OVERLAP_S = 1.0
"""Seconds that two event files may overlap and still be of one writer after the other."""


@dataclass(frozen=True)
class ReadRuns:
    """What was read of all paths."""

    runs: tuple[LoggedRun, ...]
    problems: tuple[str, ...]
    """A line for each file that could not be read."""


class _Progress:
    """Adds up bytes, and tells of them in parts of a thousand."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._total, self._progress = max(total, 1), progress
        self._done = self._told = 0

    def __call__(self, n_bytes: int) -> None:
        self._done = min(self._done + n_bytes, self._total)
        if self._progress is not None and self._done - self._told >= self._total / 1000:
            self._told = self._done
            self._progress(self._done, self._total)


def read_runs(
    paths: Sequence[str],
    *,
    pattern: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> ReadRuns:
    """Read the logs and checkpoints under paths.

    Args:
        paths: Files, folders, patterns and URLs.
        pattern: A regular expression for the lines of console logs; see `read_console`.
        progress: Called with (bytes done, bytes in all).
        say: Called with a line before each part of the work.
    """
    with tempfile.TemporaryDirectory(prefix="nanreplay-logs-") as scratch:
        files_found = find_files(paths, Path(scratch), say)
        total = sum(_size(file.path) for file in files_found.files)
        counter = _Progress(total, progress)
        runs: list[LoggedRun] = []
        problems = list(files_found.problems)
        for name, files in _grouped(files_found.files):
            if say is not None:
                say(f"reading {name}")
            run, broken = _read_run(name, files, pattern, counter)
            problems += broken
            if run.series or run.checkpoints:
                runs.append(run)
            elif not broken:
                problems.append(f"{name}: holds no logs and no checkpoints.")
    return ReadRuns(tuple(runs), tuple(problems))


def _size(path: Path) -> int:
    if path.suffix == ".index":
        shards = path.parent.glob(f"{path.stem}.data-*-of-*")
        return sum(shard.stat().st_size for shard in shards)
    return path.stat().st_size


# Which files make a run.


def _grouped(files: Sequence[FoundFile]) -> list[tuple[str, list[FoundFile]]]:
    """Files by run: those of one folder, unless two logs of one kind stand side by side."""
    by_home: dict[Path, list[FoundFile]] = {}
    for file in files:
        by_home.setdefault(file.home, []).append(file)
    _join_checkpoints(by_home)
    groups: list[tuple[str, list[FoundFile]]] = []
    for home, members in by_home.items():
        groups += _within(_name_of(home, members), members)
    return groups


def _join_checkpoints(by_home: dict[Path, list[FoundFile]]) -> None:
    """Put checkpoints that lie apart to the one run that they can belong to."""
    with_logs, alone = [], []
    for home, files in by_home.items():
        if all(map(is_checkpoint, files)):
            alone.append(home)
        else:
            with_logs.append(home)
    for home in alone:
        related = [log for log in with_logs if _is_related(log, home)]
        above = [log for log in related if home.is_relative_to(log)]
        if above:
            related = [max(above, key=lambda log: len(log.parts))]
        elif len(with_logs) == 1 and (
            len(alone) == 1 or by_home[home][0].root != by_home[with_logs[0]][0].root
        ):
            related = with_logs
        if len(related) == 1:
            by_home[related[0]] += by_home.pop(home)
    if len(with_logs) == 2 and _is_related(*with_logs):
        upper, lower = sorted(with_logs, key=lambda home: len(home.parts))
        # Event files here, a CSV there: two logs of one training.
        if not _log_kinds(by_home[upper]) & _log_kinds(by_home[lower]):
            by_home[upper] += by_home.pop(lower)


def _log_kinds(files: Sequence[FoundFile]) -> set[str]:
    return {file.kind for file in files if not is_checkpoint(file)}


def _is_related(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _name_of(home: Path, members: Sequence[FoundFile]) -> str:
    shown = members[0].shown
    at = members[0].path.parts[len(home.parts) :]
    folder = Path(shown)
    for _ in at:
        folder = folder.parent
    if len(members) == 1:
        return shown
    return str(home) if str(folder) == "." else str(folder)


def _within(name: str, members: list[FoundFile]) -> list[tuple[str, list[FoundFile]]]:
    """The runs of one folder."""
    texts: list[FoundFile] = []
    captures: list[FoundFile] = []
    others: list[FoundFile] = []
    for file in members:
        if file.kind in ("csv", "json", "json_lines", "console"):
            texts.append(file)
        elif file.kind in ("capture", "wandb"):
            captures.append(file)
        else:
            others.append(file)
    kinds = [each.kind for each in (*texts, *captures)]
    has_logs = not all(map(is_checkpoint, others))
    # Two texts of one kind are two trainings; a CSV beside a JSON may be of one.
    if len(kinds) == len(set(kinds)) and not captures:
        return [(name, members)]
    if len(texts) + len(captures) == 1 and not has_logs:
        return [(name, members)]
    groups = [(each.shown, [each]) for each in (*texts, *captures)]
    return [*groups, *([(name, others)] if others else [])]


# Reading one run.


def _read_run(
    name: str, files: Sequence[FoundFile], pattern: str | None, counter: _Progress
) -> tuple[LoggedRun, list[str]]:
    series: list[ScalarSeries] = []
    checkpoints: list[Checkpoint] = []
    notes: list[str] = []
    problems: list[str] = []
    events = []
    for file in files:
        if file.kind == "events":
            events.append(file)
    series += _read_events(events, notes, problems, counter)
    for file in files:
        if file.kind == "events":
            continue
        if is_checkpoint(file):
            checkpoint = read_checkpoint(file.path, file.kind, counter)
            ending = ".index" if file.kind == "bundle" else ""
            shown = file.shown.removesuffix(ending)
            checkpoints.append(_printable_names(replace(checkpoint, path=shown)))
            if checkpoint.error is not None:
                problems.append(f"{shown}: {checkpoint.error}.")
            continue
        try:
            found, note = _read_log(file, pattern)
        except (NanreplayError, *_DAMAGE) as error:
            if file.kind in _TEXTS and not file.is_named:
                continue  # a text in the folder that is no log
            problems.append(_one_line(error).replace(str(file.path), file.shown, 1))
            continue
        counter(file.path.stat().st_size)
        series += _in_part(found, file)
        if note is not None:
            notes.append(f"{file.shown}: {note}")
    series = [replace(each, tag=_printable(each.tag)) for each in series]
    series.sort(key=lambda each: (each.role != "loss", *loss_rank(each.tag)))
    shown_paths = tuple(file.shown for file in files)
    run = LoggedRun(name, tuple(series), tuple(in_order(checkpoints)), tuple(notes), shown_paths)
    return run, problems


def _printable(text: str) -> str:
    """A name from a file as it may be printed: a terminal obeys control characters."""
    return " ".join(readable(text).split())[:300]


def _printable_names(checkpoint: Checkpoint) -> Checkpoint:
    variables = []
    for variable in checkpoint.variables:
        name, layer = _printable(variable.name), _printable(variable.layer)
        variables.append(replace(variable, name=name, layer=layer))
    error = None if checkpoint.error is None else _printable(checkpoint.error)
    return replace(checkpoint, variables=tuple(variables), error=error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _read_log(file: FoundFile, pattern: str | None) -> tuple[list[ScalarSeries], str | None]:
    path = file.path
    if file.kind == "capture":
        from nanreplay.logs.capture_series import series_of_capture

        note = f"a capture: `nanreplay bisect {file.shown}` names the op"
        return series_of_capture(path), note
    if file.kind == "csv":
        return read_csv(path)
    if file.kind == "json":
        return read_json(path), None
    if file.kind == "json_lines":
        return read_json_lines(path)
    if file.kind == "wandb":
        return read_wandb(path)
    if file.kind == "mlflow":
        return read_mlflow(path), None
    return read_console(path, pattern), None


def _in_part(series: Iterable[ScalarSeries], file: FoundFile) -> list[ScalarSeries]:
    """Series with the part of the run in front of their tags: `validation/loss`."""
    result = []
    for each in series:
        tag = _prefix(file.part) + each.tag
        result.append(replace(each, tag=tag, role=role_of(tag), source=file.shown))
    return result


def _prefix(part: str) -> str:
    """What stands in front of tags: `validation/` of `tb/validation`, nothing of `logs`."""
    telling = {"val", "valid", "validation", "eval", "evaluation", "test", "train", "training"}
    names = []
    for name in part.split("/"):
        if name.lower() in telling:
            names.append(name)
    return f"{names[-1]}/" if names else ""


# Event files: those of one folder were written one after the other.


def _read_events(
    files: Sequence[FoundFile], notes: list[str], problems: list[str], counter: _Progress
) -> list[ScalarSeries]:
    by_folder: dict[Path, list[tuple[FoundFile, EventFile]]] = {}
    for file in files:
        try:
            with file.path.open("rb") as stream:
                events = read_event_file(stream, counter)
        except _DAMAGE as error:
            problems.append(f"{file.shown}: {_one_line(error)}")
            continue
        if events.note is not None:
            notes.append(f"{file.shown}: {events.note}")
        if events.tags:
            by_folder.setdefault(file.path.parent, []).append((file, events))
        else:
            problems.append(f"{file.shown}: no value was logged to it yet.")
    series: list[ScalarSeries] = []
    for members in by_folder.values():
        series += _join_events(members, notes)
    return series


def _join_events(
    members: list[tuple[FoundFile, EventFile]], notes: list[str]
) -> list[ScalarSeries]:
    columns: dict[str, list[tuple[int, Numbers, Numbers, Numbers, bool]]] = {}
    members.sort(key=lambda each: _first_time(each[1]))
    apart = _written_at_once(members)
    if apart:
        notes.append(
            f"{len(members)} event files of {members[0][0].path.parent.name} were written at the "
            "same time: they are taken for trainings of their own"
        )
    _count_on(members)
    for number, (file, events) in enumerate(members):
        for tag, rows in events.tags.items():
            full = _prefix(file.part) + tag
            full = f"{file.path.name}/{full}" if apart else full
            columns.setdefault(full, []).append((number, *rows.columns(), rows.is_histogram))
    source = members[0][0].shown
    source = source if len(members) == 1 else str(Path(source).parent)
    return [_series_of(tag, parts, source) for tag, parts in columns.items()]


def _series_of(
    tag: str, parts: list[tuple[int, Numbers, Numbers, Numbers, bool]], source: str
) -> ScalarSeries:
    _, part_steps, part_values, part_times, _ = zip(*parts, strict=True)
    steps, values = np.concatenate(part_steps), np.concatenate(part_values)
    times = np.concatenate(part_times)
    files = None
    if len(parts) > 1:
        files = np.repeat([part[0] for part in parts], [len(part[1]) for part in parts])
        files = files.astype(np.int32)
    is_histogram = parts[0][4]
    role = "weights" if is_histogram else role_of(tag)
    return ScalarSeries(tag, role, _axis_of(tag), steps, values, times, source, 0, files)


def _axis_of(tag: str) -> Axis:
    """Keras logs `epoch_loss` at epochs, and so the histograms; all else is logged at steps."""
    name = os.path.basename(tag)
    is_epoch = name.startswith("epoch_") or name == "histogram"
    return "epoch" if is_epoch else "step"


def _count_on(members: list[tuple[FoundFile, EventFile]]) -> None:
    """Let the batches of a resumed `fit` count on from the epochs before it.

    Keras's `TensorBoard` counts batches from 1 in each `fit`, and epochs as `initial_epoch` says.
    """
    length = 0.0
    for _, events in members:
        epochs = events.tags.get("epoch_loss")
        batches = []
        for tag, rows in events.tags.items():
            if tag.startswith("batch_"):
                batches.append(rows)
        if not batches:
            continue
        last = max(float(rows.columns()[0].max()) for rows in batches)
        if epochs is None:
            continue
        steps = epochs.columns()[0]
        length = last // len(steps) if last >= len(steps) else length
        if steps.min() > 0 and min(float(rows.columns()[0].min()) for rows in batches) <= length:
            for rows in batches:
                rows.steps = [part + steps.min() * length for part in rows.steps]


def _first_time(events: EventFile) -> float:
    return min(float(rows.columns()[2].min()) for rows in events.tags.values())


def _written_at_once(members: list[tuple[FoundFile, EventFile]]) -> bool:
    """Whether two files hold the same tags over the same time: two trainings in one folder."""
    ends: dict[str, float] = {}
    for _, events in members:
        for tag, rows in events.tags.items():
            times = rows.columns()[2]
            if tag in ends and times.min() < ends[tag] - _OVERLAP_S:
                return True
            ends[tag] = max(ends.get(tag, 0.0), float(times.max()))
    return False
