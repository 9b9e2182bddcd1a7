"""Batches straight from the file, for the first screen and the batch pane: no replay is needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from nanreplay.capture import Capture
from nanreplay.capture.storage import Location
from nanreplay.errors import FormatError
from nanreplay.explore import BatchView
from nanreplay.explore.batch_view import Spread, spread_of, view_batch
from nanreplay.findings import Origin
from nanreplay.records import ArrayLike, BatchRecord

AROUND = 4
"""Samples before and after the one that is shown, which are read with it."""
_MOST_BYTES = 64 * 2**20
"""Bytes of the other batches of the window that are read for what is usual."""


class BatchReader:
    """Reads batches of a capture, and keeps the last one; threads may share it.

    Args:
        path: The capture file.
        created: When the capture was made, as its metadata say: a batch of another one that was
            written in its place is refused. Any is read unless given.
    """

    def __init__(self, path: Location, created: str | None = None) -> None:
        self._path, self._created = path, created
        self._lock = threading.Lock()
        self._last: tuple[int, BatchRecord, Spread] | None = None

    def view(self, step: int, origin: Origin | None, row: int | None = None) -> BatchView:
        """Return some samples of a batch beside what is usual in the window.

        Args:
            step: The step.
            origin: What failed, once it is known: it names samples.
            row: The sample; the first of those to blame, else the strangest, unless given.

        Raises:
            MissingPartError: The capture does not hold the batch.
            FormatError: Another capture has the name now.
        """
        with self._lock:
            record, spread = self._read(step)
        is_origins = origin is not None and origin.step == step
        rows = origin.recorded_rows if origin is not None and is_origins else None
        reason = origin.rows_reason if origin is not None and is_origins else None

        def shown(row: int | None) -> BatchView:
            return view_batch(
                step,
                record.leaves,
                record.paths,
                spread,
                rows=rows,
                reason=reason,
                row=row,
                around=AROUND,
            )

        view = shown(row)
        if row is not None or view.rows or not view.size:
            return view
        return shown(max(range(view.size), key=view.strangeness.__getitem__))

    def _read(self, step: int) -> tuple[BatchRecord, Spread]:
        if self._last is None or self._last[0] != step:
            with Capture(self._path) as capture:
                if self._created not in (None, capture.metadata.get("created")):
                    raise FormatError(
                        f"{self._path}: another capture was written in its place.",
                        hint="f5 opens it",
                    )
                record = capture.batch(step)
                others = list(_other_batches(capture, step, record))
                self._last = step, record, spread_of(record.leaves, record.paths, others)
        return self._last[1], self._last[2]


def _other_batches(
    capture: Capture, step: int, record: BatchRecord
) -> Sequence[Sequence[ArrayLike]]:
    """Batches of the other steps, as many of the nearest as may be read."""
    size = sum(int(getattr(leaf, "nbytes", 0)) for leaf in record.leaves)
    others = sorted(
        (each for each in capture.steps if each != step), key=lambda each: abs(each - step)
    )
    most = len(others) if not size else max(_MOST_BYTES // size, 1)
    return [capture.batch(other).leaves for other in sorted(others[:most])]
