"""Steps of long ago, by their extremes: what `TimelineRing` keeps of those that it holds no more.

A training of weeks may have begun to diverge long before the last steps. All older steps are cut
into spans of equal length, and of each span a few whole steps stay: those with the lowest and the
highest loss, and with the smallest and the largest norm of all weights. When these become too many,
spans are joined two by two, so that memory stays the same however long a training runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nanreplay.recorder.timeline_ring import TimelineRow

PENDING = 32
"""Steps of a span that may wait until its extremes are chosen again: choosing takes time."""


class ThinnedSteps:
    """At most about `most` steps, from all that were added.

    Args:
        most: Steps that may be kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._span = PENDING
        """Length of a span in steps."""
        self._spans: list[list[TimelineRow]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[TimelineRow]:
        """The kept steps, oldest first."""
        for rows in self._spans:
            yield from rows

    def add(self, row: TimelineRow) -> None:
        """Add the step that follows those that were added before."""
        if not self._spans or row.step // self._span != self._spans[-1][0].step // self._span:
            self._spans.append([])
        rows = self._spans[-1]
        rows.append(row)
        self._count += 1
        if len(rows) >= PENDING:
            self._thin_last()
        if self._count > self.most:
            self.fit(self.most)

    def fit(self, most: int) -> None:
        """Keep at most about `most` steps from now on; one span stays at least."""
        self.most = most
        if not most:
            self._spans, self._count = [], 0
        while self._count > most and len(self._spans) > 1:
            self._span *= 2
            joined: dict[int, list[TimelineRow]] = {}
            for rows in self._spans:
                joined.setdefault(rows[0].step // self._span, []).extend(rows)
            self._spans = list(map(extreme_steps, joined.values()))
            self._count = sum(map(len, self._spans))

    def _thin_last(self) -> None:
        rows = self._spans[-1]
        kept = extreme_steps(rows)
        self._spans[-1] = kept
        self._count -= len(rows) - len(kept)


def extreme_steps(rows: Iterable[TimelineRow]) -> list[TimelineRow]:
    """The steps with the extremes of loss and weights, at most four, in order.

    Where neither is known, the last step.
    """
    rows = list(rows)
    losses, weights = {}, {}
    for index, row in enumerate(rows):
        if not math.isnan(row.loss):
            losses[index] = row.loss
        if row.measured is not None and len(row.measured.weight_norms):
            norms = row.measured.weight_norms
            weights[index] = float(np.dot(norms, norms))
    kept = set()
    for values in (losses, weights):
        if values:
            kept.add(min(values, key=values.__getitem__))
            kept.add(max(values, key=values.__getitem__))
    return [rows[index] for index in sorted(kept or {len(rows) - 1})]
