"""What is told of an op beside its type: the user's source lines, and the phase of the step.

The phase of an op of the main graph follows from what was running as it was made (`Observation`)
and from where its value goes. `program_record` and `eager_program` use both.
"""

from __future__ import annotations

import bisect
import linecache
import sysconfig
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

from nanreplay import notebook
from nanreplay.program.observation import Observation
from nanreplay.records import Frame

# Python stacks of ops, kept once each, without the frames of libraries.

Sources = Literal["lines", "none"]


def _folders(*names: str) -> list[Path]:
    """Where packages are, imported or not."""
    folders = []
    for name in names:
        spec = find_spec(name)
        if spec is not None and spec.origin:
            folders.append(Path(spec.origin).resolve().parent)
    return folders


_LIBRARY_FOLDERS = (
    Path(tf.__file__).resolve().parent,
    *_folders("keras", "tf_keras"),
    Path(__file__).resolve().parents[1],  # this package
    sysconfig.get_paths()["stdlib"],
)
_LIBRARIES = tuple(f"{folder}/".replace("\\", "/") for folder in _LIBRARY_FOLDERS)
_GENERATED = ("<frozen ", "<__array_function__", "<decorator-gen", "<attrs ", "<@", "<makefun-")
"""How the names begin under which Python and its packages run code that they made."""


class SourceTable:
    """Collects stacks and frames for the file's `/sources`.

    Args:
        sources: "lines" keeps the text of each line, "none" leaves it out.
    """

    def __init__(self, sources: Sources = "lines") -> None:
        self.frames: list[Frame] = []
        self.stacks: list[tuple[int, ...]] = []
        self._with_code = sources == "lines"
        self._frame_ids: dict[tuple[str, int, str], int] = {}
        self._stack_ids: dict[tuple[int, ...], int] = {}
        self._user_files: dict[str, bool] = {}
        """Whether a file is the user's: thousands of ops come from a few files."""

    def add(self, traceback: Iterable[Any] | None) -> int:
        """Index of the stack of the user's own frames, outermost first; -1 when there are none."""
        own = (entry for entry in traceback or () if self._is_users(entry))
        ids = tuple(map(self._frame, own))
        if not ids:
            return -1
        if ids not in self._stack_ids:
            self._stack_ids[ids] = len(self.stacks)
            self.stacks.append(ids)
        return self._stack_ids[ids]

    def _is_users(self, entry: Any) -> bool:
        file = entry.filename
        if file not in self._user_files:
            self._user_files[file] = is_user_file(file)
        return self._user_files[file] and not _is_generated(file, entry.name)

    def _frame(self, entry: Any) -> int:
        key = (entry.filename, int(entry.lineno), entry.name)
        if key not in self._frame_ids:
            code = None
            if self._with_code:
                code = linecache.getline(entry.filename, int(entry.lineno)).strip()
            self._frame_ids[key] = len(self.frames)
            file = notebook.cell_of(entry.filename) or entry.filename
            self.frames.append(Frame(file, int(entry.lineno), entry.name, code))
        return self._frame_ids[key]


def is_user_file(file: str, function: str = "") -> bool:
    """Whether a file is the user's, and so a function in it.

    Those of TensorFlow, Keras, this package, the standard library and other installed packages are
    not, nor is generated code. What was typed is: a cell, a line in a terminal, a text for `exec`
    or `python -c`.
    """
    file = file.replace("\\", "/")  # as Windows writes paths
    return (
        not file.startswith((*_LIBRARIES, *_GENERATED))
        and "/site-packages/" not in file
        and "__autograph_generated_file" not in file
        and not _is_generated(file, function)
    )


def _is_generated(file: str, function: str) -> bool:
    """Whether Python's own classes wrote a function, as `__init__` of a dataclass.

    They run a text, as `exec` and `python -c` run one of the user's: the file has the same name.
    """
    return file == "<string>" and function.startswith("__")


# Phases of ops.


PHASE_OF_REGION: Mapping[str, tuple[str, str]] = {
    "watch": ("watch", ""),
    "optimizer": ("update", "optimizer"),
    "backward": ("backward", "loss"),
}
"""(phase, where) of an op made in a region. The first of these regions that an op is in decides."""


@dataclass(frozen=True, slots=True)
class PhaseFlow:
    """Phases of the ops of one main graph."""

    region: Mapping[str, str]
    """`backward`, `optimizer` or `watch` for ops made in such a region, by name."""
    after_gradient: frozenset[str]
    """Ops that use a gradient."""
    leads_to_loss: frozenset[str]
    """Ops that a loss or a gradient depends on."""
    leads_to_state: frozenset[str]
    """Ops that the new value of a variable other than a metric depends on."""
    feeds_layer: frozenset[str]
    """Ops that a layer's op depends on."""
    after_layer: frozenset[str]
    """Ops that depend on a layer's op."""

    def of(self, name: str, in_layer: bool) -> tuple[str, str]:
        """(phase, where) of the op `name`."""
        region = self.region.get(name, "")
        if region:
            return PHASE_OF_REGION[region]
        if in_layer:
            return "forward", "layer"
        if name in self.after_gradient:
            return "update", "optimizer"
        if name not in self.leads_to_loss:
            # What leads to no loss counts a step (an update), or measures it (a metric).
            return ("update", "optimizer") if name in self.leads_to_state else ("forward", "metric")
        if name in self.feeds_layer:
            return "forward", "loss" if name in self.after_layer else "input"
        return "loss", "loss"


def classify_ops(
    graph: Any,
    seen: Observation,
    losses: Collection[str],
    gradients: Collection[str],
    metric_inputs: Collection[str],
) -> PhaseFlow:
    """Sort the ops of `graph` by region and by dataflow.

    Args:
        graph: A FuncGraph.
        seen: What was noted while it was traced.
        losses: Names of the ops that make its losses.
        gradients: Names of the ops that make its gradients.
        metric_inputs: Names of the placeholders of metric variables.
    """
    ops = graph.get_operations()
    region, layers = _regions(graph, ops, seen)
    flow = _Dataflow(ops)
    before_loss = flow.reach(set(losses), forward=False)
    # A gradient that the loss is made of (a penalty on it, a step of an inner training) is that of
    # an inner tape: what uses it is no update.
    backward = set()
    for name, kind in region.items():
        if kind == "backward":
            backward.add(name)
    outer = backward - before_loss
    updates = set()
    for op in ops:
        if op.type.startswith("Assign") and op.inputs and op.inputs[0].op.name not in metric_inputs:
            updates.add(op.name)
    return PhaseFlow(
        region=region,
        after_gradient=frozenset(flow.reach(outer, forward=True) - backward - before_loss),
        leads_to_loss=frozenset(before_loss | flow.reach(set(gradients), forward=False)),
        leads_to_state=frozenset(flow.reach(updates, forward=False)),
        feeds_layer=frozenset(flow.reach(layers, forward=False)),
        after_layer=frozenset(flow.reach(layers, forward=True)),
    )


def _regions(graph: Any, ops: list[Any], seen: Observation) -> tuple[dict[str, str], set[str]]:
    """The region of each op that is in one, and the names of the ops that layers made."""
    marks = seen.marks.get(id(graph), [])
    region: dict[str, str] = {}
    layers: set[str] = set()
    for index, op in enumerate(ops):
        # Marks are sorted by their first op: the last one that begins at or before this op holds.
        at = bisect.bisect_right(marks, index, key=lambda mark: mark.start) - 1
        kinds = [entry.kind for entry in marks[at].stack] if at >= 0 else []
        kind = next((kind for kind in PHASE_OF_REGION if kind in kinds), "")
        if kind:
            region[op.name] = kind
        elif "layer" in kinds:
            layers.add(op.name)
    return region, layers


class _Dataflow:
    """Data edges between the ops of a graph, by their names.

    Differentiating a While adds accumulators to it: they are made in the backward pass and become
    inputs of the forward While. Such an edge, from an op to one that was made before it, tells
    nothing of what the program did and is left out.
    """

    def __init__(self, ops: Iterable[Any]) -> None:
        self._used_by: dict[str, list[str]] = {}
        self._uses: dict[str, list[str]] = {}
        made: set[str] = set()
        for op in ops:
            name = op.name
            made.add(name)
            for tensor in op.inputs:
                source = tensor.op.name
                if source in made:
                    self._used_by.setdefault(source, []).append(name)
                    self._uses.setdefault(name, []).append(source)

    def reach(self, start: set[str], *, forward: bool) -> set[str]:
        """Names of `start` and of every op that uses them (forward) or that they use."""
        edges = self._used_by if forward else self._uses
        reached, pending = set(start), list(start)
        while pending:
            for name in edges.get(pending.pop(), ()):
                if name not in reached:
                    reached.add(name)
                    pending.append(name)
        return reached
