"""Looking at a step: its ops as a tree, where values came from and went, tensors, the batch.

For the terminal interface and for scripts. It has no TensorFlow of its own: steps run behind the
`StepRunner` of bisecting.
"""

from __future__ import annotations

from nanreplay.explore.batch_view import BatchView, Leaf
from nanreplay.explore.dataflow import (
    Hop,
    Stop,
    consumers,
    downstream,
    producers,
    source_of,
    upstream,
    worst_producer,
)
from nanreplay.explore.explorer import Explorer
from nanreplay.explore.step_tree import Node, Row, grow, keys_of, rows_of
from nanreplay.explore.step_view import Feed, Health, Op, StepView
from nanreplay.explore.tensor_history import TensorAtStep
from nanreplay.explore.tensor_view import Histogram, OperandElement, Plane, TensorView, plane

__all__ = [
    "BatchView",
    "Explorer",
    "Feed",
    "Health",
    "Histogram",
    "Hop",
    "Leaf",
    "Node",
    "Op",
    "OperandElement",
    "Plane",
    "Row",
    "StepView",
    "Stop",
    "TensorAtStep",
    "TensorView",
    "consumers",
    "downstream",
    "grow",
    "keys_of",
    "plane",
    "producers",
    "rows_of",
    "source_of",
    "upstream",
    "worst_producer",
]
