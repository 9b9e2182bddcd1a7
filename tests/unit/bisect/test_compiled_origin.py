"""The origin of what only the compiled step makes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from unit.bisect.graphs import Graph, GraphRunner

from nanreplay.bisect import find_origin
from nanreplay.records import CaptureSpec, Signature, Trigger
from nanreplay.replay.provenance import ValueId


class CompiledRunner(GraphRunner):
    """A step that fails as it is compiled: its ops are finite, and its tensors once looked at."""

    def signature(self, step: int) -> Signature:
        captures = tuple(
            CaptureSpec(self.name(ValueId(-1 - i, 0)), variable=index)
            for i, (kind, index) in enumerate(self.graph.feeds)
            if kind == "variable"
        )
        return replace(super().signature(step), captures=captures)

    def name(self, value: ValueId) -> str:
        return f"feed_{-value.serial}:0" if value.serial < 0 else self.graph.name(value)

    def inputs_of(self, step: int) -> dict[str, list[str]]:
        return {name: [*map(self.name, inputs)] for name, _, inputs, _ in self.graph.nodes}

    def compiled_event(self, step: int, op: str, *, one_by_one: bool = False) -> None:
        """Its ops take handles."""


def compiled(*, watched: str) -> CompiledRunner:
    graph = Graph()
    first, second = graph.variable(np.ones(2, np.float32)), graph.variable(np.ones(2, np.float32))
    graph.phase = "update"
    for variable in (first, second):
        graph("AssignVariableOp", variable, graph.const(np.ones(2, np.float32)))
    return CompiledRunner(graph, trigger=Trigger("variable", watched, "-inf"))


def test_the_update_that_wrote_it_is_named_where_no_op_can_be_seen_to_make_it() -> None:
    findings = find_origin(compiled(watched="v1"))
    origin = findings.origin
    assert origin is not None
    assert (origin.step, origin.phase, origin.where) == (0, "update", "optimizer")
    assert (origin.op_name, origin.kind) == ("assignvariableop_3", "written")
    assert "cannot be told" in (findings.consequence or "")


def test_without_an_op_that_writes_it_none_is_named() -> None:
    findings = find_origin(compiled(watched="elsewhere"))
    assert findings.origin is None
    assert "no op can be named" in (findings.reason or "")
