"""Which variable of today's model a recorded one is: by path and shape. Pure: imports no TensorFlow."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nanreplay.records import VariableInfo
from nanreplay.report.numbers import readable_list

_COUNTER = re.compile(r"_\d+(?=/|$)")
_NOT_LEARNED = ("metric", "seed", "optimizer")
"""Roles without which recorded weights still are what they were."""


@dataclass(slots=True)
class Match:
    """Recorded variables and those of today's model."""

    pairs: dict[int, int] = field(default_factory=dict)
    """Index of today's variable by index of the recorded one."""
    lost: list[int] = field(default_factory=list)
    """Recorded variables that today's model does not have."""
    new: list[int] = field(default_factory=list)
    """Today's variables without recorded state."""
    reshaped: list[tuple[int, int]] = field(default_factory=list)
    """(recorded, today's) variables of one path and of different shapes."""
    renumbered: list[tuple[int, int]] = field(default_factory=list)
    """Pairs whose paths differ only in the numbers that Keras counts automatic names with."""


def match_variables(
    recorded: Sequence[VariableInfo],
    today: Sequence[VariableInfo],
    renamed: Mapping[str, str],
    *,
    with_optimizer: bool = True,
) -> Match:
    """Pair the variables.

    A learning rate is a setting of today's code, and is left out on both sides.

    Args:
        recorded: The capture's table.
        today: Today's table.
        renamed: What parts of recorded paths are called today: `{"encoder/old": "encoder/new"}`.
        with_optimizer: False leaves out what optimizers keep, as where they have not updated anything yet.
    """
    match = Match()
    ours = [
        index for index, info in enumerate(recorded) if with_optimizer or info.role != "optimizer"
    ]
    theirs = [
        index for index, info in enumerate(today) if with_optimizer or info.role != "optimizer"
    ]
    ours = [index for index in ours if not is_setting(recorded[index])]
    theirs = [index for index in theirs if not is_setting(today[index])]
    models = [index for index in ours if recorded[index].role != "optimizer"]
    goals = {index: rename(recorded[index].path, renamed) for index in models}
    _pair(
        match,
        models,
        [index for index in theirs if today[index].role != "optimizer"],
        recorded,
        today,
        goals,
    )
    slots = [index for index in ours if recorded[index].role == "optimizer"]
    of_slots = _slot_goals(match, slots, recorded, today, renamed)
    _pair(
        match,
        slots,
        [index for index in theirs if today[index].role == "optimizer"],
        recorded,
        today,
        of_slots,
    )
    if with_optimizer:
        _pair_iterations(match, slots, recorded, today)
    paired, reshaped = set(match.pairs), {index for index, _ in match.reshaped}
    match.lost = [index for index in ours if index not in paired | reshaped]
    taken = set(match.pairs.values()) | {index for _, index in match.reshaped}
    match.new = [index for index in theirs if index not in taken]
    return match


def is_setting(info: VariableInfo) -> bool:
    """Whether a variable is a hyperparameter that today's code sets."""
    return info.role == "optimizer" and info.path.rpartition("/")[2] == "learning_rate"


def rename(path: str, renamed: Mapping[str, str]) -> str:
    """A recorded path in today's names; whole segments only."""
    parts = path.split("/")
    for old, new in renamed.items():
        sought, put = (
            old.strip("/").split("/"),
            [part for part in new.strip("/").split("/") if part],
        )
        for at in range(len(parts) - len(sought) + 1):
            if parts[at : at + len(sought)] == sought:
                parts[at : at + len(sought)] = put
                break
    return "/".join(parts)


def _slot_goals(
    match: Match,
    slots: Iterable[int],
    recorded: Sequence[VariableInfo],
    today: Sequence[VariableInfo],
    renamed: Mapping[str, str],
) -> dict[int, str]:
    """Paths of an optimizer's variables in today's names: Keras puts the variable's path, flattened, into the slot's name."""
    flat = {
        recorded[ours].path.replace("/", "_"): today[theirs].path.replace("/", "_")
        for ours, theirs in match.pairs.items()
    }
    longest_first = sorted(flat, key=len, reverse=True)
    goals = {}
    for index in slots:
        optimizer, _, name = recorded[index].path.rpartition("/")
        owner = next((each for each in longest_first if name.startswith(f"{each}_")), None)
        if owner is not None:
            name = flat[owner] + name[len(owner) :]
        goals[index] = f"{rename(optimizer, renamed)}/{name}"
    return goals


def _pair(
    match: Match,
    ours: list[int],
    theirs: list[int],
    recorded: Sequence[VariableInfo],
    today: Sequence[VariableInfo],
    goals: Mapping[int, str],
) -> None:
    """Pair variables whose paths are the same but for the numbers of automatic names.

    Keras counts names in the process: `dense_1` is the first layer where another model was made before, and the second
    where none was. So a group of such names is paired in the order of its numbers when the numbers differ, and by path
    when it has gained or lost a member.
    """
    paths = {index: today[index].path for index in theirs}
    mine, yours = _grouped(ours, goals), _grouped(theirs, paths)
    for name, one in mine.items():
        other = yours.get(name, [])
        same_paths = sorted(goals[index] for index in one) == sorted(
            paths[index] for index in other
        )
        by_number = len(one) == len(other) and not same_paths
        in_order = zip(_counted(one, goals), _counted(other, paths), strict=False)
        for left, right in in_order if by_number else _by_path(one, other, goals, paths):
            if recorded[left].shape != today[right].shape:
                match.reshaped.append((left, right))
                continue
            match.pairs[left] = right
            if by_number:
                match.renumbered.append((left, right))


def _by_path(
    one: Iterable[int], other: Iterable[int], goals: Mapping[int, str], paths: Mapping[int, str]
) -> Iterator[tuple[int, int]]:
    """Pairs of one path; where several variables share a path, in their order."""
    waiting: dict[str, list[int]] = defaultdict(list)
    for index in other:
        waiting[paths[index]].append(index)
    for index in one:
        if waiting[goals[index]]:
            yield index, waiting[goals[index]].pop(0)


def _grouped(indices: Iterable[int], paths: Mapping[int, str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        groups[uncounted(paths[index])].append(index)
    return groups


def _counted(indices: list[int], paths: Mapping[int, str]) -> list[int]:
    """Indices in the order of the numbers in their paths; those without a number come first, as Keras names them."""
    return sorted(
        indices, key=lambda index: [int(number[1:]) for number in _COUNTER.findall(paths[index])]
    )


def _pair_iterations(
    match: Match,
    slots: Iterable[int],
    recorded: Sequence[VariableInfo],
    today: Sequence[VariableInfo],
) -> None:
    """The count of updates goes on when the optimizer is another one."""
    ours = [index for index in slots if recorded[index].path.endswith("/iteration")]
    theirs = [
        index
        for index, info in enumerate(today)
        if info.role == "optimizer" and info.path.endswith("/iteration")
    ]
    if (
        len(ours) == len(theirs) == 1
        and ours[0] not in match.pairs
        and theirs[0] not in match.pairs.values()
    ):
        match.pairs[ours[0]] = theirs[0]


def problems(
    match: Match, recorded: Sequence[VariableInfo], today: Sequence[VariableInfo]
) -> list[str]:
    """What keeps the recorded state from being today's, a sentence each; empty when nothing does."""
    said = [
        f"`{today[other].path}` is {_shape(today[other])} today, {_shape(recorded[one])} in the recording"
        for one, other in match.reshaped
    ]
    lost = [
        f"`{recorded[index].path}` {_shape(recorded[index])}"
        for index in match.lost
        if recorded[index].role not in _NOT_LEARNED
    ]
    new = [
        f"`{today[index].path}` {_shape(today[index])}"
        for index in match.new
        if today[index].role not in ("metric", "seed")
    ]
    if lost:
        said.append(f"today's model has no {readable_list(lost, 3)}")
    if new:
        said.append(f"the recording has no {readable_list(new, 3)}")
    return said


def suggestion(
    match: Match, recorded: Sequence[VariableInfo], today: Sequence[VariableInfo]
) -> str:
    """What to do about `problems`: a renaming where one variable of the same shape is left on each side."""
    parts: list[str] = []
    for index in match.lost:
        info = recorded[index]
        alike = [
            other
            for other in match.new
            if today[other].shape == info.shape and today[other].role == info.role
        ]
        same_end = [other for other in alike if _end(today[other].path) == _end(info.path)]
        if info.role not in _NOT_LEARNED and len(same_end) == 1:
            parts.append(_renaming(info.path, today[same_end[0]].path))
    maps = [f"--map {each}" for each in dict.fromkeys(parts)][:3]
    keep = "--allow-missing keeps today's initial values there"
    return f"renamed? {' '.join(maps)}; {keep}" if maps else keep


def _renaming(old: str, new: str) -> str:
    """The shortest `old=new` that turns one path into the other."""
    left, right = old.split("/"), new.split("/")
    while len(left) > 1 and len(right) > 1 and left[-1] == right[-1]:
        left, right = left[:-1], right[:-1]
    while len(left) > 1 and len(right) > 1 and uncounted(left[0]) == uncounted(right[0]):
        left, right = left[1:], right[1:]
    return f"{'/'.join(left)}={'/'.join(right)}"


def _renumbered(old: str, new: str) -> list[str]:
    """What of two paths differs only in a number: `sequential is sequential_1`."""
    pairs = zip(reversed(old.split("/")), reversed(new.split("/")), strict=False)
    return [
        f"{one} is {other}"
        for one, other in pairs
        if one != other and uncounted(one) == uncounted(other)
    ]


def uncounted(path: str) -> str:
    """A path without the numbers that Keras counts automatic names with."""
    return _COUNTER.sub("", path)


def _end(path: str) -> str:
    return path.rpartition("/")[2]


def _shape(info: VariableInfo) -> str:
    return f"[{', '.join(map(str, info.shape))}]"


def notes_of(
    match: Match, recorded: Sequence[VariableInfo], today: Sequence[VariableInfo]
) -> list[str]:
    """Readable lines on what was paired loosely, left out, or keeps today's initial values."""
    notes = []
    counted: dict[str, None] = {}
    for one, other in match.renumbered:
        if recorded[one].role not in ("metric", "optimizer"):
            counted |= dict.fromkeys(_renumbered(recorded[one].path, today[other].path))
    if counted:
        notes.append(
            f"Names that Keras counts were matched in the order of their numbers: {readable_list(list(counted), 3)}."
        )
    slots = [recorded[index].path for index in match.lost if recorded[index].role == "optimizer"]
    if slots:
        notes.append(
            f"Recorded state of the optimizer without a place today is left out: {readable_list(slots, 3)}."
        )
    lost = [
        recorded[index].path
        for index in match.lost
        if recorded[index].role not in ("optimizer", "metric")
    ]
    if lost:
        notes.append(
            f"Recorded variables without a place today are left out: {readable_list(lost, 3)}."
        )
    fresh = [
        today[index].path
        for index in (*match.new, *(other for _, other in match.reshaped))
        if today[index].role != "metric"
    ]
    if fresh:
        notes.append(
            f"Without recorded state, these have the values that today's code gives them: {readable_list(fresh, 3)}."
        )
    return notes
