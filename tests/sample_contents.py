"""A small made-up capture for tests that need no TensorFlow: two steps of a model with one dense
layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from nanreplay.records import (
    BatchRecord,
    CaptureContents,
    CaptureSpec,
    Frame,
    GradientSpec,
    Incident,
    InputSpec,
    OpInfo,
    ProgramRecord,
    Signature,
    Timeline,
    Trigger,
    VariableInfo,
)

KERNEL = VariableInfo("dense/kernel", (3, 2), "float32", "trainable")
BIAS = VariableInfo("dense/bias", (2,), "float32", "trainable")

SIGNATURE = Signature(
    compilation="graph",
    inputs=(InputSpec("x:0", 0, "x", "float32", (None, 3)),),
    captures=(
        CaptureSpec("kernel:0", variable=0),
        CaptureSpec("bias:0", variable=1),
        CaptureSpec("scale:0", constant=0),
    ),
    outputs=("loss:0",),
    output_names=("loss",),
    control_outputs=("assign",),
    losses=("loss:0",),
    gradients=(GradientSpec(0, "gradient:0"), GradientSpec(1, "values:0", "indices:0")),
    watch="watch:0",
    watch_layout=("loss:0", "gradient_sum:0"),
    fed=(InputSpec("noise:0", 1, "noise:0", "float32", (None,)),),
)
MATMUL = OpInfo("", "dense/MatMul", "MatMul", "dense", "forward", "layer", 0, "", "")
PROGRAM = ProgramRecord("p0", b"not a graph", SIGNATURE, (MATMUL,), (np.float32(0.5),))


def sample_contents(**changes: Any) -> CaptureContents:
    """The contents of a capture of steps 3 and 4, changed as asked."""
    state = {0: np.arange(6, dtype=np.float32).reshape(3, 2), 1: np.zeros(2, np.float32)}
    batch = BatchRecord(
        "p0",
        (np.ones((4, 3), np.float32),),
        ("x",),
        np.array([1.5, 2.0], np.float32),
        fed=(np.zeros(4, np.float32),),
    )
    contents = CaptureContents(
        metadata={"nanreplay": "0.1.0", "tensorflow": "2.21.0", "script": "train.py"},
        variables=(KERNEL, BIAS),
        programs=(PROGRAM,),
        keyframes={3: state},
        batches={3: batch, 4: replace(batch, overrides={1: np.ones(2, np.float32)})},
        timeline=Timeline(
            {"step": np.array([3, 4]), "loss": np.array([1.5, np.nan])},
            {"gradient_norm": np.ones((2, 2), np.float32)},
            (0, 1),
        ),
        incident=Incident(4, Trigger("loss", "loss", "nan"), ("a note",), True, True, 0),
        weights={4: state},
        gradients={4: {0: np.full((3, 2), np.nan, np.float32)}},
        frames=(Frame("/home/me/train.py", 88, "call", "return x / tf.sqrt(var)"),),
        stacks=((0,),),
    )
    return replace(contents, **changes)


def same_bits(first: Any, second: Any) -> bool:
    """Whether two values are equal down to the bits of their arrays, types and shapes included."""
    if hasattr(first, "dtype") or hasattr(second, "dtype"):
        left, right = np.asarray(first), np.asarray(second)
        if left.shape != right.shape or left.dtype != right.dtype:
            return False
        return (
            left.tolist() == right.tolist()
            if left.dtype.kind == "O"
            else left.tobytes() == right.tobytes()
        )
    if hasattr(first, "__dataclass_fields__"):
        names = first.__dataclass_fields__
        return type(first) is type(second) and all(
            same_bits(getattr(first, name), getattr(second, name)) for name in names
        )
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(
            same_bits(value, second[key]) for key, value in first.items()
        )
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(same_bits, first, second))
    return bool(first == second)
