"""Which variable of the current model a recorded one is, by path and shape.

Used by a rerun, which loads recorded state into the current model, and by a diff of two captures.
Also says what does not match, for the error message, its hint and the notes. Pure: tables of
variables in, indices and texts out; imports no TensorFlow.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nanreplay.records import VariableInfo
from nanreplay.report.numbers import readable_list

_COUNTER = re.compile(r"_\d+(?=/|$)")
"""The number in a name that Keras counts: `dense_1/kernel`."""
_NOT_LEARNED = ("metric", "seed", "optimizer")
"""Roles without which recorded weights still are what they were."""


@dataclass(slots=True)
class Match:
    """Recorded variables and those of the current model, by their indices in the two tables."""

    pairs: dict[int, int] = field(default_factory=dict)
    """Current variable by recorded one."""
    lost: list[int] = field(default_factory=list)
    """Recorded variables that the current model does not have."""
    new: list[int] = field(default_factory=list)
    """Current variables without recorded state."""
    reshaped: list[tuple[int, int]] = field(default_factory=list)
    """(recorded, current) variables of one path and of different shapes."""
    renumbered: list[tuple[int, int]] = field(default_factory=list)
    """Pairs whose paths differ only in the numbers that Keras counts automatic names with."""


def match_variables(
    recorded: Sequence[VariableInfo],
    current: Sequence[VariableInfo],
    renamed: Mapping[str, str],
    *,
    with_optimizer: bool = True,
) -> Match:
    """Pair the variables.

    A learning rate is a setting of the user's code, and is left out on both sides.

    Args:
        recorded: The capture's table.
        current: The current model's table.
        renamed: What parts of recorded paths are called in the current code:
            `{"encoder/old": "encoder/new"}`.
        with_optimizer: False leaves out what optimizers keep, as where they have not updated
            anything yet.
    """
    match = Match()
    weights, slots = _weights_and_slots(recorded, with_optimizer)
    current_weights, current_slots = _weights_and_slots(current, with_optimizer)
    paths = {}
    for index in weights:
        paths[index] = _renamed(recorded[index].path, renamed)
    _pair(match, recorded, current, weights, current_weights, paths)
    # Slots come second: their names are made of the names of the weights.
    slot_paths = _slot_paths(match, slots, recorded, current, renamed)
    _pair(match, recorded, current, slots, current_slots, slot_paths)
    if with_optimizer:
        _pair_iterations(match, recorded, current, slots)
    placed = set(match.pairs) | {index for index, _ in match.reshaped}
    taken = set(match.pairs.values()) | {index for _, index in match.reshaped}
    match.lost = sorted({*weights, *slots} - placed)
    match.new = sorted({*current_weights, *current_slots} - taken)
    return match


def pairs_with_learning_rates(
    recorded: Sequence[VariableInfo], current: Sequence[VariableInfo], renamed: Mapping[str, str]
) -> dict[int, int]:
    """Return the pairs of `match_variables`, and the learning rates where each side has one.

    For comparing values: a setting is compared, though it is not loaded.
    """
    pairs = dict(match_variables(recorded, current, renamed).pairs)
    rates, current_rates = _those_that(recorded, is_setting), _those_that(current, is_setting)
    if len(rates) == len(current_rates) == 1:
        pairs[rates[0]] = current_rates[0]
    return pairs


def is_setting(info: VariableInfo) -> bool:
    """Whether a variable is a hyperparameter that the user's code sets."""
    return info.role == "optimizer" and _last_segment(info.path) == "learning_rate"


def uncounted(path: str) -> str:
    """A path without the numbers that Keras counts automatic names with."""
    return _COUNTER.sub("", path)


def _weights_and_slots(
    infos: Sequence[VariableInfo], with_optimizer: bool
) -> tuple[list[int], list[int]]:
    """Indices of what models hold, and of what optimizers hold but for settings."""
    weights: list[int] = []
    slots: list[int] = []
    for index, info in enumerate(infos):
        if info.role != "optimizer":
            weights.append(index)
        elif with_optimizer and not is_setting(info):
            slots.append(index)
    return weights, slots


def _those_that(infos: Sequence[VariableInfo], holds: Callable[[VariableInfo], bool]) -> list[int]:
    """Indices of the variables of which something holds."""
    return [index for index, info in enumerate(infos) if holds(info)]


def _renamed(path: str, renamed: Mapping[str, str]) -> str:
    """A recorded path in current names; only whole segments are replaced, each pattern once."""
    segments = path.split("/")
    for old, new in renamed.items():
        old_segments = old.strip("/").split("/")
        new_segments = []
        for segment in new.strip("/").split("/"):
            if segment:
                new_segments.append(segment)
        length = len(old_segments)
        for start in range(len(segments) - length + 1):
            if segments[start : start + length] == old_segments:
                segments[start : start + length] = new_segments
                break
    return "/".join(segments)


def _slot_paths(
    match: Match,
    slots: Iterable[int],
    recorded: Sequence[VariableInfo],
    current: Sequence[VariableInfo],
    renamed: Mapping[str, str],
) -> dict[int, str]:
    """Paths of an optimizer's variables in current names.

    Keras puts the path of the variable, flattened, into the name of its slot: the momentum of
    `a/kernel` is `adam/a_kernel_momentum`. The longest flattened path that fits is the variable's,
    since `a` may be the beginning of another path as well.
    """
    flat = {}
    for ours, theirs in match.pairs.items():
        flat[recorded[ours].path.replace("/", "_")] = current[theirs].path.replace("/", "_")
    longest_first = sorted(flat, key=len, reverse=True)
    paths = {}
    for index in slots:
        optimizer, _, name = recorded[index].path.rpartition("/")
        owner = next((path for path in longest_first if name.startswith(f"{path}_")), None)
        if owner is not None:
            name = flat[owner] + name[len(owner) :]
        paths[index] = f"{_renamed(optimizer, renamed)}/{name}"
    return paths


def _pair(
    match: Match,
    recorded: Sequence[VariableInfo],
    current: Sequence[VariableInfo],
    ours: Sequence[int],
    theirs: Sequence[int],
    our_paths: Mapping[int, str],
) -> None:
    """Pair variables whose paths are the same but for the numbers of automatic names.

    Keras counts names in the process: `dense_1` is the first layer where another model was made
    before, and the second where none was. So a group of such names is paired in the order of its
    numbers when the numbers differ, and by path when it has gained or lost a member.

    An example: `dense_1`, `dense_2` go with `dense`, `dense_1`, the first with the first. Of
    `dense` against `dense`, `dense_1` the two that share a path are paired.
    """
    their_paths = {index: current[index].path for index in theirs}
    our_groups, their_groups = _grouped(ours, our_paths), _grouped(theirs, their_paths)
    for name, group in our_groups.items():
        other = their_groups.get(name, [])
        our_names = sorted(map(our_paths.__getitem__, group))
        their_names = sorted(map(their_paths.__getitem__, other))
        # With the same names on both sides, each goes with its own: the numbers tell nothing more.
        is_by_number = len(group) == len(other) and our_names != their_names
        if is_by_number:
            in_order = _by_number(group, our_paths), _by_number(other, their_paths)
            pairs = list(zip(*in_order, strict=True))
        else:
            pairs = list(_by_path(group, other, our_paths, their_paths))
        for left, right in pairs:
            if recorded[left].shape != current[right].shape:
                match.reshaped.append((left, right))
                continue
            match.pairs[left] = right
            if is_by_number:
                match.renumbered.append((left, right))


def _grouped(indices: Iterable[int], paths: Mapping[int, str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        groups[uncounted(paths[index])].append(index)
    return groups


def _by_number(indices: Sequence[int], paths: Mapping[int, str]) -> list[int]:
    """Indices in the order of the numbers in their paths.

    Those without a number come first, as Keras names them.
    """

    def numbers(index: int) -> list[int]:
        return [int(number[1:]) for number in _COUNTER.findall(paths[index])]

    return sorted(indices, key=numbers)


def _by_path(
    ours: Iterable[int],
    theirs: Iterable[int],
    our_paths: Mapping[int, str],
    their_paths: Mapping[int, str],
) -> Iterator[tuple[int, int]]:
    """Pairs of one path; where several variables share a path, in their order."""
    waiting: dict[str, list[int]] = defaultdict(list)
    for index in theirs:
        waiting[their_paths[index]].append(index)
    for index in ours:
        if waiting[our_paths[index]]:
            yield index, waiting[our_paths[index]].pop(0)


def _pair_iterations(
    match: Match,
    recorded: Sequence[VariableInfo],
    current: Sequence[VariableInfo],
    slots: Iterable[int],
) -> None:
    """Let the count of updates go on when the optimizer is another one."""
    ours = []
    for index in slots:
        if _counts_updates(recorded[index]):
            ours.append(index)
    theirs = _those_that(current, _counts_updates)
    if len(ours) != 1 or len(theirs) != 1:
        return
    if ours[0] not in match.pairs and theirs[0] not in match.pairs.values():
        match.pairs[ours[0]] = theirs[0]


def _counts_updates(info: VariableInfo) -> bool:
    # Keras names it so in every optimizer, and loads it by that name.
    return info.role == "optimizer" and info.path.endswith("/iteration")


# What users are told of a match.


def problems(
    match: Match, recorded: Sequence[VariableInfo], current: Sequence[VariableInfo]
) -> list[str]:
    """What keeps the recorded state from being loaded, a sentence each; empty when nothing does."""
    sentences = []
    for old, new in match.reshaped:
        shapes = f"{_shape(current[new])} today, {_shape(recorded[old])} in the recording"
        sentences.append(f"`{current[new].path}` is {shapes}")

    def named(
        infos: Sequence[VariableInfo], indices: Iterable[int], besides: Sequence[str]
    ) -> list[str]:
        names = []
        for index in indices:
            info = infos[index]
            if info.role not in besides:
                names.append(f"`{info.path}` {_shape(info)}")
        return names

    lost = named(recorded, match.lost, _NOT_LEARNED)
    if lost:
        sentences.append(f"today's model has no {readable_list(lost, 3)}")
    new_ones = named(current, match.new, ("metric", "seed"))
    if new_ones:
        sentences.append(f"the recording has no {readable_list(new_ones, 3)}")
    return sentences


def _shape(info: VariableInfo) -> str:
    return f"[{', '.join(map(str, info.shape))}]"


def suggestion(
    match: Match, recorded: Sequence[VariableInfo], current: Sequence[VariableInfo]
) -> str:
    """What to do about `problems`.

    A renaming is suggested where one variable of the same shape, role and last name is new.
    """
    renamings: list[str] = []
    for index in match.lost:
        info = recorded[index]
        alike = []
        for other in match.new:
            if _is_alike(current[other], info):
                alike.append(current[other].path)
        if info.role not in _NOT_LEARNED and len(alike) == 1:
            renamings.append(_shortest_renaming(info.path, alike[0]))
    options = [f"--map {renaming}" for renaming in dict.fromkeys(renamings)][:3]
    keep = "--allow-missing keeps today's initial values there"
    return f"renamed? {' '.join(options)}; {keep}" if options else keep


def _is_alike(one: VariableInfo, other: VariableInfo) -> bool:
    is_same_kind = one.shape == other.shape and one.role == other.role
    return is_same_kind and _last_segment(one.path) == _last_segment(other.path)


def _last_segment(path: str) -> str:
    return path.rpartition("/")[2]


def _shortest_renaming(old: str, new: str) -> str:
    """The shortest `old=new` that turns one path into the other: segments in common go."""
    left, right = old.split("/"), new.split("/")
    while len(left) > 1 and len(right) > 1 and left[-1] == right[-1]:
        left, right = left[:-1], right[:-1]
    while len(left) > 1 and len(right) > 1 and uncounted(left[0]) == uncounted(right[0]):
        left, right = left[1:], right[1:]
    return f"{'/'.join(left)}={'/'.join(right)}"


def notes_of(
    match: Match, recorded: Sequence[VariableInfo], current: Sequence[VariableInfo]
) -> list[str]:
    """Readable lines on what was paired loosely, left out, or keeps its initial value."""
    counted: dict[str, None] = {}
    for old, new in match.renumbered:
        if recorded[old].role not in ("metric", "optimizer"):
            counted |= dict.fromkeys(_renumbered_names(recorded[old].path, current[new].path))

    def lost_paths(is_told: Callable[[str], bool]) -> list[str]:
        return [recorded[index].path for index in match.lost if is_told(recorded[index].role)]

    fresh = (*match.new, *(new for _, new in match.reshaped))
    paths_by_text = {
        "Names that Keras counts were matched in the order of their numbers": list(counted),
        "Recorded state of the optimizer without a place today is left out": lost_paths(
            lambda role: role == "optimizer"
        ),
        "Recorded variables without a place today are left out": lost_paths(
            lambda role: role not in ("optimizer", "metric")
        ),
        "Without recorded state, these have the values that today's code gives them": [
            current[index].path for index in fresh if current[index].role != "metric"
        ],
    }
    return [f"{text}: {readable_list(paths, 3)}." for text, paths in paths_by_text.items() if paths]


def _renumbered_names(old: str, new: str) -> list[str]:
    """Segments of two paths that differ only in a number: `sequential is sequential_1`."""
    names = []
    # From the end, for `--map` may have given one path more segments in front.
    for one, other in zip(reversed(old.split("/")), reversed(new.split("/")), strict=False):
        if one != other and uncounted(one) == uncounted(other):
            names.append(f"{one} is {other}")
    return names
