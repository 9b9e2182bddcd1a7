"""Looking at a step: its ops as a tree, where values came from and went, tensors, the batch. For front ends; no TensorFlow of its own."""

from nanreplay.explore.batch import BatchView, Leaf
from nanreplay.explore.dataflow import Hop, Stop, consumers, downstream, producers, source_of, upstream, worst_producer
from nanreplay.explore.explorer import Explorer
from nanreplay.explore.health import Health
from nanreplay.explore.step import Feed, Op, StepView
from nanreplay.explore.tree import Node, Row, grow, keys_of, rows_of
from nanreplay.explore.values import Histogram, Operand, Plane, TensorView, plane

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
    "Operand",
    "Plane",
    "Row",
    "StepView",
    "Stop",
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
