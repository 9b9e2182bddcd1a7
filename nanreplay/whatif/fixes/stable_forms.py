"""Fixes that compute the same in another way: log-softmax, softplus, a quotient that is 0 where its divisor is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.program.graph_nodes import constant_array
from nanreplay.records import Frame
from nanreplay.whatif.edits import CannotTryError, Edit, Fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fix_code import rewritten
from nanreplay.whatif.fixes.operand_fixes import clamp

_SMALL = 0.01
"""A constant below this that is added before a logarithm is an epsilon."""
_COPIES = ("Identity", "StopGradient", "Cast", "Reshape")


@dataclass(frozen=True, slots=True)
class Chain:
    """Ops of the main graph that compute one value, and what stands for them."""

    ops: tuple[OpKey, ...]
    """The last one first."""
    given: str
    """The tensor that they start from."""
    compute: Callable[[Any], Any]
    """The same function, computed so that it does not overflow."""
    op: str
    """Its name in TensorFlow."""


def stable_op(failure: Failure, value: str | None) -> Fix:
    """Exchange the ops around the origin for one that is finite there."""
    failure.check_users_own()
    editor = ProgramEditor(failure.window.replay.program(failure.step).record)
    kind, source = editor.node(failure.op).op, failure.source(failure.op)
    if kind in ("RealDiv", "Div"):
        return Fix(
            "stable_op",
            {"op": "tf.math.divide_no_nan"},
            Edit(programs=(_divide_no_nan(failure.op),)),
            _no_nan(source),
            source,
        )
    if kind == "Log":
        chain = next(
            (
                chain
                for find in (_log_softmax, _log_sigmoid, _log_one_plus_exp)
                if (chain := find(editor, failure.op))
            ),
            None,
        )
        if chain is not None:
            return _exchanged(chain, source)
    if kind in ("Exp", "Expm1", "Acos", "Asin", "Atanh", "Acosh"):
        return _shifted(failure, editor, source) or clamp(failure, None)
    raise CannotTryError(f"No op is known that computes what `{kind}` does here and stays finite.")


def _no_nan(source: Frame | None) -> str:
    code = rewritten(source, "RealDiv", "{}")
    return "tf.math.divide_no_nan(x, y)  # in place of the quotient" + (
        f" in `{code}`" if source is not None and source.code else ""
    )


def _divide_no_nan(op: OpKey) -> Callable[[ProgramEditor], None]:
    def edit(editor: ProgramEditor) -> None:
        at = editor.locate(op)
        gradient = [
            key for key, info in editor.infos.items() if (info.forward_function, info.forward) == at
        ]
        for key in (at, *gradient):
            node = editor.node(key)
            if node.op in ("RealDiv", "Div"):
                node.op = "DivNoNan"

    return edit


def _shifted(failure: Failure, editor: ProgramEditor, source: Frame | None) -> Fix | None:
    """A softmax by hand, exp(x) / sum(exp(x)): take the largest of the row off first, which changes nothing of the quotient."""
    function = failure.op[0]
    (made,) = editor.outputs(failure.op)
    users = [key for key, _ in editor.consumers(function, made)]
    sums = [key for key in users if editor.node(key).op == "Sum"]
    divided = any(editor.node(key).op == "RealDiv" for key in users)
    if function or len(sums) != 1 or not divided:
        return None
    axis = editor.data_inputs(sums[0])[1]

    def edit(editor: ProgramEditor) -> None:
        (taken,) = editor.data_inputs(failure.op)
        new = editor.add(
            "", lambda x, a: x - tf.stop_gradient(tf.reduce_max(x, a, keepdims=True)), [taken, axis]
        )[0]
        editor.set_input(failure.op, 0, new)

    code = rewritten(
        source, editor.node(failure.op).op, "{0} - tf.reduce_max({0}, axis=-1, keepdims=True)"
    )
    return Fix("stable_op", {"op": "tf.nn.softmax"}, Edit(programs=(edit,)), code, source)


def _log_softmax(editor: ProgramEditor, log: OpKey) -> Chain | None:
    way = _back(editor, log)
    if not _ends(editor, way, "Softmax"):
        return None
    return Chain(way[:-1], editor.data_inputs(way[-2])[0], tf.nn.log_softmax, "tf.nn.log_softmax")


def _log_sigmoid(editor: ProgramEditor, log: OpKey) -> Chain | None:
    """log(sigmoid(x)), and log(1 - sigmoid(x))."""
    way = _back(editor, log)
    if _ends(editor, way, "Sigmoid"):
        return Chain(
            way[:-1], editor.data_inputs(way[-2])[0], tf.math.log_sigmoid, "tf.math.log_sigmoid"
        )
    if not _ends(editor, way, "Sub") or not _is_one(editor, editor.data_inputs(way[-2])[0]):
        return None
    more = _back(editor, way[-2], 1)
    if not _ends(editor, more, "Sigmoid"):
        return None
    given = editor.data_inputs(more[-2])[0]
    return Chain(
        (*way[:-1], *more[1:-1]), given, lambda x: -tf.math.softplus(x), "tf.math.log_sigmoid(-x)"
    )


def _log_one_plus_exp(editor: ProgramEditor, log: OpKey) -> Chain | None:
    """log(1 + exp(x))."""
    way = _back(editor, log)
    if not (_ends(editor, way, "AddV2") or _ends(editor, way, "Add")):
        return None
    inputs = editor.data_inputs(way[-2])
    for k in (0, 1):
        more = _back(editor, way[-2], k)
        if _is_one(editor, inputs[1 - k]) and _ends(editor, more, "Exp"):
            return Chain(
                (*way[:-1], *more[1:-1]),
                editor.data_inputs(more[-2])[0],
                tf.math.softplus,
                "tf.math.softplus",
            )
    return None


def _back(editor: ProgramEditor, op: OpKey, position: int = 0) -> tuple[OpKey, ...]:
    """The op, copies before it, the first op that is none, and an end mark; only in the main graph."""
    way = [op]
    tensor = editor.data_inputs(op)[position]
    while not op[0]:
        key = ("", tensor.partition(":")[0])
        if key not in editor.infos:
            break
        way.append(key)
        kept = _copied(editor, key)
        if kept is None:
            break
        tensor = editor.data_inputs(key)[kept]
    return (*way, ("", ""))


def _copied(editor: ProgramEditor, key: OpKey) -> int | None:
    """Which input an op passes on: of a copy the first, of a sum the one that an epsilon is added to; None for other ops."""
    node = editor.node(key)
    if node.op in _COPIES:
        return 0
    if node.op not in ("AddV2", "Add"):
        return None
    small = [
        k
        for k, tensor in enumerate(editor.data_inputs(key))
        if _is_constant(editor, tensor, lambda x: np.abs(x) < _SMALL)
    ]
    return 1 - small[0] if small else None


def _ends(editor: ProgramEditor, way: Sequence[OpKey], op_type: str) -> bool:
    return len(way) > 2 and editor.node(way[-2]).op == op_type


def _is_one(editor: ProgramEditor, tensor: str) -> bool:
    return _is_constant(editor, tensor, lambda x: x == 1)


def _is_constant(editor: ProgramEditor, tensor: str, holds: Callable[[Any], Any]) -> bool:
    """Whether a tensor is a constant of which all elements are so."""
    key = ("", tensor.partition(":")[0])
    if key not in editor.infos or editor.node(key).op != "Const":
        return False
    value = constant_array(editor.node(key).attr["value"].tensor)
    return bool(value.dtype.kind in "fiu" and np.asarray(holds(value)).all())


def _exchanged(chain: Chain, source: Frame | None) -> Fix:
    def edit(editor: ProgramEditor) -> None:
        (made,) = editor.outputs(chain.ops[0])
        backward = {
            key
            for key, info in editor.infos.items()
            if (info.forward_function, info.forward) in chain.ops
        }
        if backward:
            _exchange_gradient(editor, chain, made, backward)
        kind = editor.dtype("", made)
        new = editor.add("", lambda x: chain.compute(tf.cast(x, kind)), [chain.given])[0]
        editor.reroute("", made, new, only=lambda key: key not in backward)

    code = f"{chain.op}(logits)  # in place of log(...)" + (
        f" in `{source.code.strip()}`" if source is not None and source.code else ""
    )
    return Fix("stable_op", {"op": chain.op}, Edit(programs=(edit,)), code, source)


def _exchange_gradient(
    editor: ProgramEditor, chain: Chain, made: str, backward: set[OpKey]
) -> None:
    """Put the gradient of the new function where that of the old ops came out."""
    own = {tensor for op in chain.ops for tensor in (*editor.data_inputs(op), *editor.outputs(op))}
    incoming = list(
        dict.fromkeys(
            t
            for key in backward
            for t in editor.data_inputs(key)
            if _is_outside(editor, t, backward, own)
        )
    )
    outgoing = list(
        dict.fromkeys(
            t
            for key in backward
            for t in editor.outputs(key)
            if any(user not in backward for user, _ in editor.consumers("", t))
        )
    )
    if len(incoming) != 1 or len(outgoing) != 1:
        raise CannotTryError(
            f"The value is used in several ways, so `{chain.op}` cannot stand for it on the recording."
        )

    def gradient(x: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = chain.compute(tf.cast(x, upstream.dtype))
        return tape.gradient(y, x, output_gradients=upstream)

    new = editor.add("", gradient, [chain.given, incoming[0]])[0]
    editor.reroute("", outgoing[0], new, only=lambda key: key not in backward)


def _is_outside(editor: ProgramEditor, tensor: str, backward: set[OpKey], own: set[str]) -> bool:
    """Whether a float that a backward op takes was made by none of the ops, nor by their gradients, nor is it a constant."""
    key = ("", tensor.partition(":")[0])
    if (
        tensor in own
        or key in backward
        or editor.node(key).op in ("Const", "Shape", "BroadcastGradientArgs")
    ):
        return False
    return bool(editor.dtype("", tensor).is_floating)
