"""Training loops of every shape that people write, small: each trains the same model to a NaN.

A shape is a function that trains with what a `Run` gives it; modules register theirs with
`@shape(...)`. Each runs in three columns: as plain Python, in a `tf.function`, and compiled by XLA.
"""

from __future__ import annotations

import importlib

from loop_shapes.base import COLUMNS, EAGER, GRAPH, SHAPES, XLA, Run, Shape

__all__ = ["COLUMNS", "EAGER", "GRAPH", "SHAPES", "XLA", "Run", "Shape"]

_MODULES = (
    "arguments",
    "iterators",
    "callables",
    "control_flow",
    "several_steps",
    "returns",
    "side_effects",
    "gradients",
    "distribution",
)
for _module in _MODULES:
    importlib.import_module(f"loop_shapes.{_module}")
