"""Fixes of the update: learning rate, clipping, steps left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program.graph_editor import ProgramEditor
from nanreplay.records import Signature
from nanreplay.whatif.edits import BadValueError, CannotTryError, Edit, Fix, ProgramEdit
from nanreplay.whatif.failure import Failure

_OPTIMIZERS = (
    "SGD",
    "RMSprop",
    "Adam",
    "AdamW",
    "Adadelta",
    "Adagrad",
    "Adamax",
    "Adafactor",
    "Nadam",
    "Ftrl",
    "Lion",
    "Lamb",
    "Muon",
)
"""Optimizers of Keras; named here, because importing Keras takes a second."""
_CHECKS = ("CheckNumerics", "CheckNumericsV2")


def lr(failure: Failure, value: str | None) -> Fix:
    """Train with a part of the learning rate."""
    factor = number(value, 0.1)
    window = failure.window
    if (
        len(window.steps) == 1
        and failure.step == window.failing
        and (failure.origin is None or failure.origin.phase != "update")
    ):
        raise CannotTryError(
            "The capture holds no step before the failing one, so a learning rate has nothing to change."
        )
    rate = window.signature().learning_rate
    recorded = None if rate is None else float(np.asarray(window.first_state()[rate]))
    code = (
        f"learning_rate={factor * recorded:.3g}"
        if recorded is not None
        else f"learning_rate={factor:g} * learning_rate"
    )
    was = "" if recorded is None else f"  # was {recorded:.3g}"
    return Fix(
        "lr",
        {"factor": factor},
        Edit(learning_rate=factor),
        f"keras.optimizers.{optimizer_of(failure)}({code}){was}",
    )


def clipnorm(failure: Failure, value: str | None) -> Fix:
    """Scale each gradient down to a norm."""
    return _clipped(
        failure,
        "clipnorm",
        number(value, 1.0),
        lambda gradients, limit: [tf.clip_by_norm(each, limit) for each in gradients],
    )


def clipvalue(failure: Failure, value: str | None) -> Fix:
    """Cut each element of each gradient."""
    limit = number(value, 1.0)
    return _clipped(
        failure,
        "clipvalue",
        limit,
        lambda gradients, high: [tf.clip_by_value(each, -high, high) for each in gradients],
    )


def global_clipnorm(failure: Failure, value: str | None) -> Fix:
    """Scale all gradients down so that their norm taken together fits."""
    return _clipped(
        failure,
        "global_clipnorm",
        number(value, 1.0),
        lambda gradients, limit: tf.clip_by_global_norm(gradients, limit)[0],
    )


def skip_step(failure: Failure, value: str | None) -> Fix:
    """Leave out the update of a step that is not finite."""
    code = "if tf.math.is_finite(loss): optimizer.apply_gradients(...)"
    return Fix(
        "skip_step",
        {},
        Edit(skips_nonfinite=True),
        code,
        note="The loss of the step stays as it is; its update is left out.",
    )


def _clipped(
    failure: Failure, name: str, limit: float, clip: Callable[[Sequence[Any], Any], Sequence[Any]]
) -> Fix:
    code = f"keras.optimizers.{optimizer_of(failure)}(..., {name}={limit:g})"
    return Fix(name, {"value": limit}, Edit(programs=(gradients_edit(clip, limit, failure),)), code)


def gradients_edit(
    clip: Callable[[Sequence[Any], Any], Sequence[Any]], limit: float, failure: Failure
) -> ProgramEdit:
    """Return the edit that puts `clip(gradients, limit)` between the gradients and the optimizer."""

    def edit(editor: ProgramEditor) -> None:
        signature = editor.record.signature
        tensors = list(dict.fromkeys(spec.tensor for spec in signature.gradients))
        if not tensors:
            raise CannotTryError("The step has no gradients that could be clipped.")
        scale = _loss_scale(signature, failure)
        given = [*tensors, *([scale] if scale else [])]

        def compute(*values: Any) -> Sequence[Any]:
            gradients = values[: len(tensors)]
            high: Any = limit
            if scale:  # the optimizer gets scaled gradients, and clips what is left when the scale is taken off
                high = limit * tf.raw_ops.ReadVariableOp(resource=values[-1], dtype=tf.float32)
            return [
                tf.cast(new, old.dtype)
                for new, old in zip(clip(gradients, high), gradients, strict=True)
            ]

        for old, new in zip(tensors, editor.add("", compute, given), strict=True):
            changed = editor.reroute("", old, new, only=lambda key: _is_update(editor, key))
            if not changed:
                raise CannotTryError(
                    "The step ended before an update took its gradients, so there is nothing to clip."
                )

    return edit


def _is_update(editor: ProgramEditor, key: tuple[str, str]) -> bool:
    info = editor.infos.get(key)
    return info is not None and info.phase == "update" and info.type not in _CHECKS


def _loss_scale(signature: Signature, failure: Failure) -> str | None:
    if not signature.loss_scaled:
        return None
    variables = failure.window.replay.variables
    handles = (
        spec.tensor
        for spec in signature.captures
        if spec.variable is not None and _is_scale(variables[spec.variable].path)
    )
    return next(handles, None)


def _is_scale(path: str) -> bool:
    return path.rpartition("/")[2] == "dynamic_scale"


def optimizer_of(failure: Failure) -> str:
    """Return the class of the optimizer as its variables name it; `Optimizer` when they do not."""
    known = {name.lower(): name for name in _OPTIMIZERS}
    for info in failure.window.replay.variables:
        if info.role == "optimizer":
            name = info.path.partition("/")[0].replace("_", "").rstrip("0123456789").lower()
            if name in known:
                return known[name]
    return "Optimizer"


def number(value: str | None, default: float) -> float:
    """Return a fix's number.

    Raises:
        BadValueError: It is none, or not above 0.
    """
    if value is None:
        return default
    try:
        found = float(value)
    except ValueError:
        raise BadValueError(f"Expected a number above 0. Received: {value}") from None
    if not found > 0 or not np.isfinite(found):
        raise BadValueError(f"Expected a number above 0. Received: {value}")
    return found
