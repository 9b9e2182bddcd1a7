"""What the parts of a file take, and which of them fit: before the file is written.

`dump` and `dump_proof` ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanreplay.recorder.dump_window import DumpWindow
from nanreplay.recorder.ring import StepEntry, size_of
from nanreplay.recorder.snapshot import Share, Sizes, Snapshot, fit_disk


def fitting_share(snapshot: Snapshot, sizes: Sizes) -> Share:
    """What is written."""
    state_bytes = sum(snapshot.variables.sizes)
    limit = snapshot.room.disk_bytes(state_bytes, max(sizes.batches.values(), default=0))
    is_given = snapshot.room.is_disk_given
    return fit_disk(sizes, limit, "disk_limit" if is_given else 'disk_limit="auto"')


def sizes_before_description(snapshot: Snapshot) -> Sizes:
    """What there is to write without re-execution, before the programs are described."""
    return Sizes(
        other=snapshot.other_bytes,
        keyframes=_keyframe_sizes(snapshot, snapshot.keyframes),
        batches={entry.step: _entry_bytes(entry) for entry in snapshot.entries},
        full={},
    )


def _keyframe_sizes(
    snapshot: Snapshot, keyframes: Mapping[int, Mapping[int, Any]]
) -> dict[int, int]:
    sizes = snapshot.variables.sizes
    return {step: sum(sizes[index] for index in values) for step, values in keyframes.items()}


def _entry_bytes(entry: StepEntry) -> int:
    fetched_bytes = 0 if entry.element is None else entry.element.size_bytes
    return fetched_bytes + size_of([*entry.leaves, *entry.fed, *entry.overrides.values()])


def sizes_of(snapshot: Snapshot, window: DumpWindow) -> Sizes:
    """What there is to write, weights and gradients of single steps included."""
    sizes = snapshot.variables.sizes
    trainable = snapshot.variables.of_role("trainable")
    trainable_bytes = sum(sizes[index] for index in trainable)
    full = window.full if window.proof is None else [*window.proof.weights]
    full_bytes = dict.fromkeys(full, 2 * trainable_bytes)
    if full and window.proof is None:
        # The weights before the last step are those after the one before it.
        written = [*(trainable if len(full) > 1 or holds_weights_before(snapshot, window) else ())]
        others = set(written_before(snapshot)).difference(written)
        full_bytes[max(full)] += sum(sizes[index] for index in others)
    timeline_bytes = snapshot.timeline.written_bytes(len(trainable), len(snapshot.timeline))
    return Sizes(
        other=sum(len(program.graph) for program in window.programs.values()) + timeline_bytes,
        keyframes=_keyframe_sizes(snapshot, window.keyframes),
        batches={
            step: size_of([*batch.arrays, *batch.overrides.values()])
            for step, batch in window.batches.items()
        },
        full=full_bytes,
    )


def written_before(snapshot: Snapshot) -> tuple[int, ...]:
    """The variables that are written as they were just before the failing step.

    All of them; of a large state, those that the forward and the backward pass can read. Its
    optimizer's slots, which would double the file, are left to the replay from a keyframe.
    """
    infos = snapshot.variables.infos
    if not snapshot.room.is_large(sum(snapshot.variables.sizes)):
        return tuple(range(len(infos)))
    return tuple(
        index for index, info in enumerate(infos) if info.role != "optimizer" or not info.shape
    )


def holds_weights_before(snapshot: Snapshot, window: DumpWindow) -> bool:
    """Whether the weights before the failing step are written in place of those after it."""
    return window.full_steps == 1 and snapshot.room.is_large(sum(snapshot.variables.sizes))
