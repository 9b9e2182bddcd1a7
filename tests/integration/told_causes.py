"""What the sentence of a cause says in numbers, each looked up in the run that it speaks of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from plain_training import floats_of

NUMBER = r"(-?\d[\d.]*(?:e[-+]?\d+)?)"
AT = r"\[([\d, ]+)\]"
Same = Callable[[Any, Any], bool]


@dataclass(frozen=True)
class Evidence:
    """What a cause may speak of."""

    taken: Sequence[Any]
    """Tensors that the op takes."""
    around: Sequence[Any]
    """These, and all on the way to the op or from it, as float64 arrays."""
    batches: Mapping[int, Sequence[Any]]
    """Arrays of the batch of each step."""
    last: Sequence[Any]
    """Outputs of the last ops that ran: where one raised, it takes some of them."""
    step: int
    initial: Sequence[Any]
    """Values with which variables begin."""
    same: Same

    def holds(self, number: str, at: str, arrays: Sequence[Any] | None = None) -> bool:
        """Whether an array has a number at an element, broadcast where it is smaller."""
        index = tuple(map(int, at.split(",")))
        return any(
            self.same(float(number), value)
            for array in (self.around if arrays is None else arrays)
            for value in _elements(array, index)
        )


def _elements(array: Any, index: tuple[int, ...]) -> Iterator[Any]:
    if not array.size or array.ndim > len(index):
        return
    for at in (index[: array.ndim], index[len(index) - array.ndim :]):
        if all(i < size or size == 1 for i, size in zip(at, array.shape, strict=True)):
            yield array[tuple(min(i, n - 1) for i, n in zip(at, array.shape, strict=True))]


def _element(evidence: Evidence, number: str, at: str) -> bool:
    return evidence.holds(number, at)


def _element_before(evidence: Evidence, at: str, number: str) -> bool:
    return evidence.holds(number, at)


def _beyond_half(evidence: Evidence, number: str, at: str) -> bool:
    """A result that only a wider type holds: computed anew from what the op takes."""
    arrays = [array for array in map(floats_of, evidence.taken) if array is not None]
    found: list[Any] = []
    with np.errstate(all="ignore"):
        for left in arrays:
            found += [np.square(left), np.exp(left), left.sum(axis=-1)]
            for right in arrays:
                for function in (np.multiply, np.matmul, _dot):
                    with suppress(ValueError):  # shapes that do not fit
                        found.append(function(left, right))
    return evidence.holds(number, at, found)


def _dot(left: Any, right: Any) -> Any:
    return np.matmul(left, np.swapaxes(right, -1, -2) if right.ndim > 1 else right)


def _in_batch(
    evidence: Evidence, number: str, row: str, column: str, step: str, low: str, high: str
) -> bool:
    """A value of a row, and between which bounds it is in the batches before."""
    for place, part in enumerate(evidence.batches[int(step)]):
        if not np.ndim(part) or len(part) <= int(row):
            continue
        flat = np.reshape(part, (len(part), -1))
        if int(column) >= flat.shape[1] or not _near(number, flat[int(row), int(column)]):
            continue
        others = [parts[place] for n, parts in evidence.batches.items() if n != int(step)]
        usual = [np.reshape(one, (len(one), -1))[:, int(column)] for one in others]
        margin = 0.05 * (float(high) - float(low)) + 1e-6
        return all(
            bool((one > float(low) - margin).all() and (one < float(high) + margin).all())
            for one in usual
        )
    return False


def _bad_in_batch(evidence: Evidence, row: str, column: str) -> bool:
    parts = [part for part in evidence.batches[evidence.step] if np.ndim(part) > 1]
    return any(not np.isfinite(part[int(row)].ravel()[int(column)]) for part in parts)


def _label(evidence: Evidence, row: str, label: str, classes: str) -> bool:
    parts = [part for part in evidence.batches[evidence.step] if np.ndim(part)]
    in_place = any(_near(label, np.ravel(part[int(row)])[0]) for part in parts)
    logits = [np.shape(tensor)[-1] for tensor in evidence.last if np.ndim(tensor)]
    return in_place and int(classes) in logits and not 0 <= int(label) < int(classes)


def _root_mean_square(evidence: Evidence, size: str, times: str, rule: str) -> bool:
    sizes = [np.sqrt(np.mean(np.square(one, dtype=float))) for one in evidence.initial]
    return _near(times, float(size) / float(rule)) and any(_near(size, one) for one in sizes)


def _radius(evidence: Evidence, radius: str) -> bool:
    square = [one for one in evidence.initial if one.ndim == 2 and one.shape[0] == one.shape[1]]
    return any(_near(radius, np.abs(np.linalg.eigvals(one)).max()) for one in square)


def _empty(evidence: Evidence, shape: str) -> bool:
    return any(str(list(np.shape(tensor))) == f"[{shape}]" for tensor in evidence.taken)


def _near(told: str, found: Any) -> bool:
    """Whether a number was rounded to what is told, three digits at least."""
    return bool(np.isclose(float(told), float(found), rtol=6e-3))


PATTERNS: Mapping[str, Callable[..., bool]] = {
    rf"(?:\bof|\bis|exactly) {NUMBER}(?: in float16)? at {AT}": _element,
    rf"at {AT} is (?:exactly )?{NUMBER}": _element_before,
    rf"gives {NUMBER} at {AT}, which float16": _beyond_half,
    rf"holds {NUMBER} in row (\d+), column (\d+) of step (\d+) \(usually {NUMBER} to {NUMBER}":
        _in_batch,
    r"batch\[[^\]]*\]`, row (\d+), column (\d+)": _bad_in_batch,
    r"label in row (\d+) is (-?\d+), but there are only (\d+) classes": _label,
    rf"root mean square of {NUMBER}, {NUMBER} times the {NUMBER} that": _root_mean_square,
    rf"spectral radius of {NUMBER}": _radius,
    r"empty tensor of shape \[([\d, ]*)\]": _empty,
}  # fmt: skip
"""What sentences of causes say in numbers, and what looks it up."""


def told_numbers(sentence: str, evidence: Evidence) -> Iterator[tuple[str, bool]]:
    """Each thing that a sentence says in numbers, and whether it is so."""
    for pattern, check in PATTERNS.items():
        for found in re.finditer(pattern, sentence):
            numbers = [group.rstrip(".") for group in found.groups()]
            yield found[0], check(evidence, *numbers)
