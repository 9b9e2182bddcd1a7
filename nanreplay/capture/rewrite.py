"""A capture as contents to be changed and written again, with no more than one step of it in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from nanreplay.capture.reader import Capture
from nanreplay.records import CaptureContents

T = TypeVar("T")


class LazySteps(Mapping[int, T], Generic[T]):
    """Parts of a capture by step, each made when it is asked for and not kept.

    Args:
        steps: The steps that there are, ascending.
        read: Makes the part of one step.
    """

    def __init__(self, steps: Sequence[int], read: Callable[[int], T]) -> None:
        """Make nothing yet."""
        self._steps = tuple(steps)
        self._read = read

    def __getitem__(self, step: int) -> T:
        """Make the part of a step."""
        if step not in self._steps:
            raise KeyError(step)
        return self._read(step)

    def __iter__(self) -> Iterator[int]:
        """The steps, ascending."""
        return iter(self._steps)

    def __len__(self) -> int:
        """How many steps there are."""
        return len(self._steps)


def lazy_contents(capture: Capture) -> CaptureContents:
    """Return what an open capture holds, with the parts of each step read as they are asked for.

    Weights and gradients of single steps are left out: a replay gives them again.

    Change it with `dataclasses.replace` and write it with `write_capture` while the capture is open.
    """
    return CaptureContents(
        metadata=capture.metadata,
        variables=capture.variables_info,
        programs=tuple(capture.program(name) for name in capture.programs),
        keyframes=LazySteps(capture.keyframe_steps, capture.keyframe),
        batches=LazySteps(capture.steps, capture.batch),
        timeline=capture.timeline_record(),
        incident=capture.incident,
        frames=capture.frames,
        stacks=capture.stacks,
    )
