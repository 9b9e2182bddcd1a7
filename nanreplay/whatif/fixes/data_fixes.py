"""Fixes of the data: non-finite values replaced, rows left out, values cut to a usual range."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanreplay.bisect.batch_rows import BatchRows, own_leaves, read_rows
from nanreplay.bisect.index_arrays import index_arrays
from nanreplay.bisect.origin_facts import replica_of_path
from nanreplay.capture.arrays import as_array
from nanreplay.diagnose.outliers import find_outliers, outlying_rows
from nanreplay.findings import Number
from nanreplay.records import EACH_ITERATION, MADE_BEFORE, MADE_OUTSIDE
from nanreplay.whatif.edits import BadValueError, CannotTryError, Edit, Fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fixes.batch_arrays import (
    Bounds,
    in_code,
    is_float,
    label_places,
    own_path,
    usual_bounds,
)
from nanreplay.whatif.fixes.update_fixes import positive_number

_STAND_INS = (
    "The recorded step takes batches of one size: other rows of the batch stand in their places."
)


def clean_data(failure: Failure, value: str | None) -> Fix:
    """Replace what is not finite by 0, or leave the rows out that the origin needs."""
    failure.check_batch_decides()
    is_in_batch = failure.origin is not None and failure.origin.is_of_batch
    way = value or ("nan_to_num" if is_in_batch else "drop_rows")
    if way == "nan_to_num":
        return _nan_to_num(failure)
    if way == "drop_rows":
        return _drop_rows(failure)
    raise BadValueError(f"Expected nan_to_num or drop_rows. Received: {way}")


def _nan_to_num(failure: Failure) -> Fix:
    batch = failure.window.replay.batch(failure.step)
    paths = []
    for path, leaf in zip(batch.paths, batch.leaves, strict=True):
        if is_float(leaf) and not np.isfinite(as_array(leaf).astype(np.float64)).all():
            paths.append(own_path(failure, path))
    bad = list(dict.fromkeys(paths))
    if not bad:
        raise CannotTryError(f"The batch of step {failure.step} is finite.")

    def edit(step: int, leaves: Sequence[Any]) -> Sequence[Any]:
        own_paths = []
        for path in failure.window.replay.batch(step).paths:
            own_paths.append(own_path(failure, path))
        edited = []
        for path, leaf in zip(own_paths, leaves, strict=True):
            if path in bad and is_float(leaf):
                edited.append(_finite(as_array(leaf)))
            else:
                edited.append(leaf)
        return edited

    code = "\n".join(_cleaning_line(failure, path) for path in bad)
    edits = []
    for path in bad:
        edits.append({"array": path, "nan": 0.0, "posinf": 0.0, "neginf": 0.0})
    params = {"how": "nan_to_num"}
    return Fix("clean_data", params, Edit(batches=(edit,)), code, edits=edits)


def _cleaning_line(failure: Failure, path: str) -> str:
    if path.startswith((MADE_OUTSIDE, MADE_BEFORE)):
        how = "outside of TensorFlow" if path.startswith(MADE_OUTSIDE) else "before the step"
        return f"# Put `np.nan_to_num` around the array that your code makes {how}"
    array = in_code(failure, path)
    return f"{array} = np.nan_to_num({array}, posinf=0.0, neginf=0.0)"


def _finite(leaf: Any) -> Any:
    return np.where(np.isfinite(leaf.astype(np.float64)), leaf, leaf.dtype.type(0))


@dataclass(frozen=True, slots=True)
class _BadRows:
    """Rows of a batch that are to be left out."""

    step: int
    recorded: tuple[int, ...]
    """As they count in the arrays whose paths begin with `prefix`."""
    told: tuple[int, ...]
    """As they count in the batch that the user gave, where it is known how that was split."""
    prefix: str = ""
    replica: int | None = None
    """Whose part of the batch `told` counts in; None for all of it."""

    @property
    def words(self) -> str:
        """The batch, for a comment: `step 3`."""
        part = "" if self.replica is None else f"the part of replica {self.replica} in "
        return f"{part}step {self.step}"


def _bad_rows(failure: Failure) -> _BadRows:
    """Those of the batch that is to blame, which may be that of an earlier step.

    Raises:
        CannotTryError: None are known to do it.
    """
    replay, origin = failure.window.replay, failure.origin
    if failure.data_step != failure.step:
        step = failure.data_step
        path = find_outliers(replay, step)[0].path
        replica = replica_of_path(path)
        prefix = "" if replica is None else f"replica_{replica}/"
        rows = outlying_rows(replay, step, prefix)
        if path.startswith(EACH_ITERATION) or not rows:
            raise CannotTryError(f"Which rows of step {step} do it is not known.")
        return _BadRows(step, rows, rows, prefix, replica)
    if origin is None or not origin.rows:
        raise CannotTryError("No rows of the batch were proved to be the ones that do it.")
    replica = origin.replica if origin.is_of_part else None
    recorded = origin.recorded_rows or ()
    return _BadRows(failure.step, recorded, origin.rows, origin.batch_prefix, replica)


def _drop_rows(failure: Failure) -> Fix:
    bad = _bad_rows(failure)
    batch = failure.window.replay.batch(bad.step)
    own_places = own_leaves(batch.paths, bad.prefix)
    scene = failure.bisection.scene
    indices = {} if scene is None else index_arrays(scene.trace)

    def samples(leaves: Sequence[Any]) -> BatchRows:
        used = {}
        for i, use in indices.items():
            if i in own_places:
                used[own_places.index(i)] = use
        paths = [batch.paths[place] for place in own_places]
        return read_rows(paths, [np.asarray(leaves[place]) for place in own_places], used)

    size = samples(batch.leaves).size
    if size is None or len(bad.recorded) >= size:
        raise CannotTryError("Every row of the batch would have to be left out.")
    kept = np.setdiff1d(np.arange(size), bad.recorded)
    dropped, told = list(map(int, bad.recorded)), list(map(int, bad.told))
    before = told[0] - dropped[0]
    whose: dict[str, Any] = {} if bad.replica is None else {"replica": bad.replica}
    at = f"  # of {bad.words}"
    if _takes_any_batch_size(failure, bad.step):
        rows, note = kept, None
        change = f"np.delete(part, {told}, axis=0)"
        code = f"batch = tf.nest.map_structure(lambda part: {change}, batch){at}"
        edits: list[dict[str, Any]] = [{"rows": told, "step": bad.step, **whose}]
    else:
        rows, note = np.arange(size), _STAND_INS
        stand_ins = [int(kept[row % len(kept)]) for row in dropped]
        rows[dropped] = stand_ins
        told_ins = [before + row for row in stand_ins]
        code = f"for part in tf.nest.flatten(batch): part[{told}] = part[{told_ins}]{at}"
        edits = [{"rows": told, "stand_ins": told_ins, "step": bad.step, **whose}]

    def without_rows(step: int, leaves: Sequence[Any]) -> Sequence[Any]:
        if step != bad.step:
            return leaves
        changed = list(leaves)
        for place, array in zip(own_places, samples(leaves).keep(rows.tolist()), strict=True):
            changed[place] = array
        return changed

    leaves = [np.asarray(batch.leaves[place]) for place in own_places]
    remaining = samples(batch.leaves).keep(rows.tolist())
    has_names = any(map(failure.names_data, batch.paths))  # there is no `batch` in the code then
    is_indexed = map(_is_indexed, leaves, remaining, itertools.repeat(rows))
    if has_names or not all(is_indexed):
        part = "" if bad.replica is None else f"replica {bad.replica}'s part of "
        code = f"# Leave the samples {told} out of {part}the batch of step {bad.step}"
    params: dict[str, Number] = {"how": "drop_rows", "rows": ", ".join(map(str, dropped))}
    if bad.step != failure.step:
        params["step"] = bad.step
    return Fix("clean_data", params, Edit(batches=(without_rows,)), code, note=note, edits=edits)


def _is_indexed(old: Any, new: Any, rows: Any) -> bool:
    """Whether an array keeps its samples as `array[rows]` does: it is not ragged or sparse."""
    same = old[rows] if old.ndim and old.shape[0] > rows.max() else old
    return new.shape == same.shape and bool(np.array_equal(new, same, equal_nan=_is_number(old)))


def _is_number(array: Any) -> bool:
    return array.dtype.kind in "fc"


def _takes_any_batch_size(failure: Failure, step: int) -> bool:
    """Whether no input of the program has a fixed first axis."""
    shapes = []
    for spec in failure.window.replay.signature(step).inputs:
        shapes.append(spec.shape)
    return all(not shape or shape[0] is None for shape in shapes)


def clip_data(failure: Failure, value: str | None) -> Fix:
    """Cut float arrays of the batch to the range of the other batches, or to -value and value.

    Labels are left as they are, what is to be learned is no matter of taste; but for numbers among
    them that lie far out of what the other batches hold.
    """
    limit = None if value is None else positive_number(value, 1.0)
    failure.check_batch_decides()
    batch, labels = failure.window.replay.batch(failure.data_step), label_places(failure)
    floats = []
    for place, leaf in enumerate(batch.leaves):
        if is_float(leaf) and as_array(leaf).ndim:
            floats.append(place)
    places = []
    for place in floats:
        if place not in labels:
            places.append(place)
    if limit is None:
        targets = [place for place in floats if place in labels]
        bounds = list(usual_bounds(failure, places, targets))
        places += targets
    else:
        bounds = []
        for path in dict.fromkeys(own_path(failure, batch.paths[place]) for place in places):
            bounds.append(Bounds(path, None, -limit, limit))
    if not any(_clips(failure, one, places) for one in bounds):
        others = [step for step in failure.window.replay.capture.steps if step != failure.data_step]
        if limit is None and not others:
            raise CannotTryError("The capture holds no other batch that tells a usual range.")
        within = (
            f"{-limit:g} to {limit:g}"
            if limit is not None
            else ("the range of the others, where these tell one")
        )
        raise CannotTryError(f"The batch of step {failure.data_step} lies within {within}.")

    def edit(step: int, leaves: Sequence[Any]) -> Sequence[Any]:
        paths = failure.window.replay.batch(step).paths
        changed = list(leaves)
        for place, path in enumerate(paths):
            for one in bounds:
                if own_path(failure, path) == one.path and is_float(changed[place]):
                    changed[place] = one.clipped(as_array(changed[place]))
        return changed

    params: dict[str, Number] = {
        "low": min(one.low for one in bounds),
        "high": max(one.high for one in bounds),
    }
    if limit is None:
        params["arrays"] = ", ".join(dict.fromkeys(one.path for one in bounds))
    edits = []
    for one in bounds:
        edits.append({"array": one.path, "column": one.column, "low": one.low, "high": one.high})
    code = "\n".join(one.code(failure) for one in bounds)
    return Fix("clip_data", params, Edit(batches=(edit,)), code, edits=edits)


def _clips(failure: Failure, bounds: Bounds, places: Sequence[int]) -> bool:
    """Whether bounds change anything of the failing batch."""
    batch = failure.window.replay.batch(failure.data_step)
    for place in places:
        if own_path(failure, batch.paths[place]) == bounds.path:
            leaf = as_array(batch.leaves[place])
            if not np.array_equal(bounds.clipped(leaf), leaf, equal_nan=True):
                return True
    return False
