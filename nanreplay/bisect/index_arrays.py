"""Which arrays of a batch number rows of others, as the ops of the step tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from nanreplay.bisect.influence import COPIES
from nanreplay.bisect.op_trace import Fact, StepTrace
from nanreplay.bisect.tensor_stats import is_float, words
from nanreplay.capture.arrays import as_array
from nanreplay.replay.provenance import ValueId

IndexUse: TypeAlias = Literal["segments", "rows"]
"""What an array of the batch numbers: the segment of each of its rows, or rows of another array."""
_SEGMENT_IDS = {
    **dict.fromkeys(
        words(
            "SegmentSum SegmentSumV2 SegmentMean SegmentMax SegmentMaxV2 SegmentMin SegmentMinV2 "
            "SegmentProd SegmentProdV2 UnsortedSegmentSum UnsortedSegmentMax UnsortedSegmentMin "
            "UnsortedSegmentProd"
        ),
        1,
    ),
    **dict.fromkeys(words("SparseSegmentSum SparseSegmentMean SparseSegmentSqrtN"), 2),
    "ScatterNd": 0,
    "TensorScatterAdd": 1,
}
"""Position of the numbers that tell where a row is added, by op type."""
_ROW_NUMBERS = dict.fromkeys(words("Gather GatherV2"), 1)
"""Position of the numbers of rows that are taken, by op type."""
_HANDED_ON = COPIES | words("Cast ExpandDims Slice Squeeze StridedSlice Transpose Unpack")


@dataclass(slots=True)
class _BatchTrace:
    """Which values of a step come from the batch."""

    trace: StepTrace
    serials: set[int] = field(default_factory=set)

    def is_from_batch(self, value: ValueId) -> bool:
        if value.serial >= 0:
            return value.serial in self.serials
        return self.trace.feed(value)[0] == "batch"

    def array(self, value: ValueId) -> int | None:
        """Place of the array of the batch that a value is (a part of); None if it is none."""
        while value.serial >= 0:
            fact = self.trace.facts.get(value.serial)
            if fact is None or fact.type not in _HANDED_ON or not fact.input_ids:
                return None
            value = fact.input_ids[0]
        kind, index = self.trace.feed(value)
        return index if kind == "batch" else None


def index_arrays(trace: StepTrace) -> dict[int, IndexUse]:
    """Return the arrays of the batch that number rows of others, by place.

    Numbers of the rows of a variable, as an embedding takes them, are none.
    """
    uses: dict[int, IndexUse] = {}
    known = _BatchTrace(trace)
    for fact in trace.facts.values():
        # Ops are met in the order in which they ran, so what their inputs are from is known.
        if any(known.is_from_batch(value) for value in fact.input_ids):
            known.serials.add(fact.serial)
        for table, use in ((_SEGMENT_IDS, "segments"), (_ROW_NUMBERS, "rows")):
            place = table.get(fact.type)
            index = None if place is None else known.array(fact.input_ids[place])
            if index is None or not _numbers_rows(known, fact, index):
                continue
            # Numbers that also take rows apart from their segments make samples depend on each
            # other.
            if use == "rows" or index not in uses:
                uses[index] = "rows" if use == "rows" else "segments"
    return uses


def _numbers_rows(known: _BatchTrace, fact: Fact, index: int) -> bool:
    """Whether an array of the batch numbers rows of what comes from the batch as well."""
    leaves = known.trace.runner.batch(known.trace.step).leaves
    if index >= len(leaves) or is_float(leaves[index]):
        return False
    array = as_array(leaves[index])
    if fact.type not in ("Gather", "GatherV2"):
        return bool(array.ndim)
    taken_from = fact.input_ids[0]
    stat = known.trace.stat(taken_from)
    if not known.is_from_batch(taken_from) or stat is None or not stat.shape or not array.ndim:
        return False
    # As many numbers as rows sort them anew, as a shuffle does: a row in, a row out.
    return len(array) != stat.shape[0]
