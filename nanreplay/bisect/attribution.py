"""Phase, place, layer and loop of an op instance, from the program's table of ops and the calls around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import cast

from nanreplay.bisect.run import OpKey
from nanreplay.bisect.trace import Fact, StepTrace
from nanreplay.findings import LoopStep
from nanreplay.records import PHASES, OpInfo, Phase, Where

_PLACES: Mapping[str, Where] = {"input": "input", "loss": "loss", "update": "optimizer"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the training step an op instance ran."""

    phase: Phase
    where: Where
    layer_path: str
    """Chain of Keras layers, "" outside."""
    stack: int
    """Index of a Python stack, -1 when unknown."""
    replica: int | None = None
    """Which of several replicas ran it; None where it serves all."""

    @property
    def layer(self) -> str | None:
        """Innermost layer, None where the op belongs to none."""
        return self.layer_path.rsplit("/", 1)[-1] if self.where == "layer" and self.layer_path else None

    @property
    def rank(self) -> int:
        """Phases in the order in which they run."""
        return PHASES.index(self.phase)


def _first(numbers: Iterable[int]) -> int | None:
    return next((number for number in numbers if number >= 0), None)


class Attribution:
    """Answers for one step's program."""

    def __init__(self, ops: Mapping[OpKey, OpInfo]) -> None:
        """Take the table of ops."""
        self._ops = ops
        self._known: dict[tuple[OpKey, ...], Place] = {}

    def place(self, fact: Fact) -> Place:
        """Return where an op instance ran."""
        keys = (*((call.function, call.op) for call in fact.calls), fact.key)
        if keys not in self._known:
            self._known[keys] = self._find(keys)
        return self._known[keys]

    def info(self, fact: Fact) -> OpInfo | None:
        """Return what the table says of an op itself."""
        return self._ops.get(fact.key)

    def _find(self, keys: tuple[OpKey, ...]) -> Place:
        infos = [info for key in keys if (info := self._ops.get(key)) is not None]
        inward = list(reversed(infos))
        phase = next((info.phase for info in inward if info.phase in PHASES), "forward")
        where = next((info.where for info in inward if info.where), "")
        path = "/".join(part for info in infos if (part := info.layer_path))
        stack = next((stack for info in inward if (stack := self._stack(info)) >= 0), -1)
        if not where:
            where = _PLACES.get(phase) or ("layer" if path else "loss")
        place = Place(cast("Phase", phase), cast("Where", where), path, stack)
        return place if phase == "update" else replace(place, replica=_first(op.replica for op in infos))

    def _stack(self, info: OpInfo) -> int:
        """The line that the user wrote: for a backward op that of its forward op."""
        if info.forward:
            forward = self._ops.get((info.forward_function, info.forward))
            if forward is not None and forward.stack >= 0:
                return forward.stack
        return info.stack

    def loops(self, fact: Fact, trace: StepTrace) -> tuple[LoopStep, ...]:
        """Return the enclosing loops, outermost first; for a backward loop the forward loop's iteration."""
        return tuple(
            LoopStep(call.op, self._forward_iteration(call.callee, call.iteration, fact, trace))
            for call in fact.calls
            if call.iteration is not None
        )

    def _forward_iteration(self, body: str, iteration: int, fact: Fact, trace: StepTrace) -> int:
        forward = self._forward_function(body, fact)
        trips = trace.trips.get(("", forward), 0) if forward is not None else 0
        return trips - 1 - iteration if trips > iteration else iteration

    def _forward_function(self, body: str, fact: Fact) -> str | None:
        """The loop body whose gradient `body` computes, by the forward ops of the ops in it."""
        own = self._ops.get(fact.key)
        if own is not None and own.function == body and own.forward:
            return own.forward_function or None
        for (function, _), info in self._ops.items():
            if function == body and info.forward and info.forward_function not in ("", body):
                return info.forward_function
        return None
