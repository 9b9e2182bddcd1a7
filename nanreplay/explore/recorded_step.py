"""A step as the file alone tells it, before anything has run: its ops, their layers and lines.

The terminal interface shows it until the step was replayed. Reads the capture; no TensorFlow.
"""

from __future__ import annotations

from nanreplay.bisect.judge import Attribution
from nanreplay.bisect.op_trace import Fact
from nanreplay.capture import Capture
from nanreplay.errors import MissingPartError
from nanreplay.explore.step_view import Op, Segment, StepView
from nanreplay.records import PHASES, Frame, OpInfo, ops_by_key

_ORDER = {phase: i for i, phase in enumerate(PHASES)}


def recorded_step(capture: Capture, step: int) -> StepView:
    """Return the ops of the program that a step ran, in the order in which they were traced.

    Their health is `unknown`, and what they gave and took is not told. Loops and branches are one
    op each: what runs inside of them, and how often, is known once the step has run.

    Args:
        capture: An open capture.
        step: The step.

    Raises:
        MissingPartError: The capture does not hold the step, or its program.
    """
    program = capture.batch(step).program
    if not program:
        raise MissingPartError(f"{capture.path}: the program of step {step} is not held.")
    infos = []
    for info in capture.program(program).ops:
        if info.phase != "watch":
            infos.append(info)
    places = _RecordedPlaces(capture, infos)
    ops = []
    for serial, info in enumerate(places.main_graph):
        ops.append(places.op(serial, info))
    return StepView(step=step, ops=tuple(ops), feeds=(), origins=(), failed=(), has_run=False)


class _RecordedPlaces:
    """Phase, layer and line of the ops of a program."""

    def __init__(self, capture: Capture, infos: list[OpInfo]) -> None:
        self.main_graph: list[OpInfo] = []
        for info in infos:
            # a placeholder stands for what is fed, which a reader sees as the batch and the state
            if not info.function and not info.type.startswith("Placeholder"):
                self.main_graph.append(info)
        self._attribution = Attribution(ops_by_key(infos))
        self._stacks, self._frames = capture.stacks, capture.frames

    def op(self, serial: int, info: OpInfo) -> Op:
        """Return an op of the main graph."""
        fact = Fact(serial, "", info.name, info.type, (), (), (), ())
        place = self._attribution.place(fact)
        layers = place.layer_path.split("/") if place.layer_path else []
        is_in_layer = place.where == "layer"
        return Op(
            serial=serial,
            function="",
            name=info.name,
            type=info.type,
            phase=place.phase if place.phase in _ORDER else "forward",
            where=place.where,
            layer_path=place.layer_path if is_in_layer else "",
            place=tuple(Segment("layer", name) for name in layers) if is_in_layer else (),
            loop=(),
            inputs=(),
            stored=(),
            outputs=(),
            health="unknown",
            source=self._line(place.stack),
        )

    def _line(self, stack: int) -> Frame | None:
        """The innermost line of the user's code of a stack."""
        is_known = 0 <= stack < len(self._stacks) and self._stacks[stack]
        return self._frames[self._stacks[stack][-1]] if is_known else None
