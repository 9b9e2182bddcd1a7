"""Fixes of the update: learning rate, clipping, steps left out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from nanreplay.bisect.growth import falls_without_bound, learning_rate_at, share_added
from nanreplay.findings import Number
from nanreplay.program.graph_editor import OpKey, ProgramEditor
from nanreplay.records import Signature
from nanreplay.whatif.edits import (
    BadValueError,
    CannotTryError,
    Edit,
    Fix,
    ProgramEdit,
    RareEdit,
)
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fix_code import short_number

Clip: TypeAlias = Callable[[Sequence[Any], Any], Sequence[Any]]
"""(gradients, limit) -> gradients."""
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
_FAR_TOO_HIGH = 1e3
"""Five decades below a rate above this there is no usual one."""
_USUAL_RATES = (0.1, 0.01, 0.001, 1e-4)
_SIZES = {
    "clipnorm": "gradient_norm",
    "global_clipnorm": "gradient_norm",
    "clipvalue": "gradient_absmax",
}
"""What the timeline holds of each gradient that tells whether it is clipped."""
_SURELY_BELOW = 0.999
"""Part of a limit below which a norm is, however it is rounded."""
_CHECKS = ("CheckNumerics", "CheckNumericsV2")
_CLIPPING_CODE = {
    "clipnorm": "gradients = [tf.clip_by_norm(one, {0:g}) for one in gradients]",
    "clipvalue": "gradients = [tf.clip_by_value(one, -{0:g}, {0:g}) for one in gradients]",
    "global_clipnorm": "gradients, _ = tf.clip_by_global_norm(gradients, {0:g})",
}
"""What stands for the argument of an optimizer where there is none."""
_SKIPPING_CODE = """\
finite = [tf.reduce_all(tf.math.is_finite(one)) for one in (loss, *gradients)]
if tf.reduce_all(finite): optimizer.apply_gradients(zip(gradients, weights))"""


def lr(failure: Failure, value: str | None) -> Fix:
    """Train with a part of the learning rate."""
    factor = positive_number(value, 0.1)
    window, origin = failure.window, failure.origin
    is_before_update = origin is None or origin.phase != "update"
    if len(window.steps) == 1 and failure.step == window.failing and is_before_update:
        raise CannotTryError(f"{window.why_not_earlier}, so a learning rate has nothing to change.")
    timeline = failure.window.replay.capture.timeline_record()
    params: dict[str, Number] = {"factor": factor}
    recorded = _recorded_rate(failure)
    if recorded is None and share_added(timeline, failure.step) is not None:
        raise CannotTryError(
            "Which part of an update the learning rate makes is not recorded, and the updates add "
            "a share of the weights themselves."
        )
    if falls_without_bound(timeline, failure.step) is not None:
        raise CannotTryError("The loss has no lower bound: a lower rate reaches the end later.")
    if recorded is not None and _keeps_rate(failure, recorded):
        params["learning_rate"] = float(f"{factor * recorded:.6g}")
    lines, edits = [], []
    for optimizer, rate, last in _rates(failure):
        new = float(f"{factor * rate:.6g}")
        if np.isclose(rate, last, rtol=1e-5, atol=0):
            lines.append(f"{optimizer}(learning_rate={new:g})  # was {rate:.6g}")
        else:  # what sets it would set it again, whatever the optimizer began with
            lines.append(
                f"# Take {factor:g} times each learning rate that your code sets for {optimizer}: "
                f"{new:g} at first (was {rate:.6g}), {factor * last:.6g} at last (was {last:.6g})"
            )
        arguments = {"argument": "learning_rate", "factor": factor, "learning_rate": new}
        edits.append({"optimizer": optimizer, **arguments})
    if not lines:  # a schedule, or a plain number
        lines = [f"{optimizer_of(failure)}(learning_rate={factor:g} * learning_rate)"]
        if _is_by_hand(failure):
            lines = [f"# Take {factor:g} times the learning rate in your update of the weights"]
        edits = [{"optimizer": optimizer_of(failure), "argument": "learning_rate", **params}]
    return Fix("lr", params, Edit(learning_rate=factor), "\n".join(lines), edits=edits)


def _keeps_rate(failure: Failure, first: float) -> bool:
    """Whether the rate of the window's first step is that of its last update as well."""
    timeline = failure.window.replay.capture.timeline_record()
    last = learning_rate_at(timeline, max(failure.window.steps[0], failure.window.failing - 1))
    return last is None or bool(np.isclose(first, last, rtol=1e-5, atol=0))


def _rates(failure: Failure) -> Iterator[tuple[str, float, float]]:
    """The optimizers whose rate is a variable, as code names them, with the first and last rate."""
    window = failure.window
    state, rates = window.first_state(), window.rates()
    for index in rates:
        if index in state:
            name = window.replay.variables[index].path.rpartition("/")[0]
            named = optimizer_of(failure) if len(rates) == 1 else _class_of(failure, name)
            rate = last = float(np.asarray(state[index]))
            for step in window.steps:
                outside = {**window.changes.get(step, {}), **window.replay.batch(step).overrides}
                last = float(np.asarray(outside.get(index, last)))
            yield named, rate, last


def _class_of(failure: Failure, name: str) -> str:
    """The class of an optimizer by its name, which is that of the class unless it was given one."""
    plain = name.rpartition("/")[2].replace("_", "").rstrip("0123456789").lower()
    for one in failure.window.signature().optimizers:
        if one.rpartition(".")[2].lower() == plain:
            return one
    return name or optimizer_of(failure)


def _recorded_rate(failure: Failure) -> float | None:
    """The learning rate of the window's first step; None where it is not recorded."""
    window = failure.window
    variable = window.signature().learning_rate
    if variable is not None:
        return float(np.asarray(window.first_state()[variable]))
    return learning_rate_at(window.replay.capture.timeline_record(), window.steps[0])


def usual_factors(failure: Failure) -> list[str]:
    """Return the factors that make usual rates of one that is far above all of them.

    Empty where the rate is not as high, or not known: decades below it are usual ones then.
    """
    recorded = _recorded_rate(failure)
    if recorded is None or recorded <= _FAR_TOO_HIGH or not np.isfinite(recorded):
        return []
    return [short_number(rate / recorded) for rate in _USUAL_RATES]


def clipnorm(failure: Failure, value: str | None) -> Fix:
    """Scale each gradient down to a norm."""

    def clip(gradients: Sequence[Any], limit: Any) -> Sequence[Any]:
        return [tf.clip_by_norm(gradient, limit) for gradient in gradients]

    return _clipping_fix(failure, "clipnorm", value, clip)


def clipvalue(failure: Failure, value: str | None) -> Fix:
    """Cut each element of each gradient."""

    def clip(gradients: Sequence[Any], limit: Any) -> Sequence[Any]:
        return [tf.clip_by_value(gradient, -limit, limit) for gradient in gradients]

    return _clipping_fix(failure, "clipvalue", value, clip)


def global_clipnorm(failure: Failure, value: str | None) -> Fix:
    """Scale all gradients down so that their norm taken together fits."""

    def clip(gradients: Sequence[Any], limit: Any) -> Sequence[Any]:
        clipped: Sequence[Any] = tf.clip_by_global_norm(gradients, limit)[0]
        return clipped

    return _clipping_fix(failure, "global_clipnorm", value, clip)


def skip_step(failure: Failure, value: str | None) -> Fix:
    """Leave out the update of a step whose loss or gradients are not finite."""
    origin, trigger = failure.origin, failure.window.replay.incident.trigger
    if trigger.what == "variable" and (origin is None or origin.phase == "update"):
        raise CannotTryError(
            "The loss and the gradients are finite before the update, so there is nothing to tell "
            "by that it is to be left out."
        )
    return Fix("skip_step", {}, Edit(skips_nonfinite=True), code=_SKIPPING_CODE)


def _clipping_fix(failure: Failure, name: str, value: str | None, clip: Clip) -> Fix:
    limit = positive_number(value, 1.0)
    window, origin = failure.window, failure.origin
    if (
        len(window.steps) == 1
        and (origin is None or origin.phase not in ("backward", "update"))
        and any(cause.kind == "high_learning_rate" for cause in failure.causes[:1])
    ):
        why = window.why_not_earlier
        raise CannotTryError(f"{why}, and the updates before it are to blame, not its own.")
    note = "  # in place of the clipping that it does: Keras takes one" * _clips(failure)
    code = in_optimizers(failure, f"..., {name}={limit:g}", note)
    if _is_by_hand(failure):
        code = f"{_CLIPPING_CODE[name].format(limit)}  # before your update of the weights"
    left = _steps_left_by_clipping(failure, name, limit)
    change = RareEdit(_gradients_edit(clip, limit, failure), left.__contains__)
    edit = Edit(programs=(change,))
    names = failure.window.signature().optimizers or (optimizer_of(failure),)
    edits = [{"optimizer": one, "argument": name, "value": limit} for one in names]
    return Fix(name, {"value": limit}, edit, code, edits=edits)


def _gradients_edit(clip: Clip, limit: float, failure: Failure) -> ProgramEdit:
    """Return the edit that puts `clip(gradients, limit)` between gradients and optimizer."""

    def edit(editor: ProgramEditor) -> None:
        signature = editor.record.signature
        tensors = list(dict.fromkeys(signature.gradient_tensors))
        if not tensors:
            raise CannotTryError("The step has no gradients that could be clipped.")
        scale = _loss_scale(signature, failure)

        def clipped(*values: Any) -> Sequence[Any]:
            gradients, scaled_limit = values[: len(tensors)], limit
            if scale:
                # The optimizer gets gradients times the loss scale, and clips what is left when the
                # scale is taken off.
                scaled_limit *= tf.raw_ops.ReadVariableOp(resource=values[-1], dtype=tf.float32)
            pairs = zip(clip(gradients, scaled_limit), gradients, strict=True)
            return [tf.cast(new, old.dtype) for new, old in pairs]

        arguments = [*tensors, scale] if scale else tensors
        for old, new in zip(tensors, editor.add("", clipped, arguments), strict=True):
            if not editor.reroute("", old, new, only=lambda key: _is_update(editor, key)):
                raise CannotTryError(
                    "The step ended before an update took its gradients, "
                    "so there is nothing to clip."
                )

    return edit


def _steps_left_by_clipping(failure: Failure, name: str, limit: float) -> frozenset[int]:
    """The steps whose gradients are within a limit, by what was recorded of them.

    A norm is rounded, and times a limit, divided by it, is no change for powers of two alone.
    """
    signature = failure.window.signature()
    if signature.loss_scaled or (name != "clipvalue" and math.frexp(limit)[0] != 0.5):
        return frozenset()
    timeline = failure.window.replay.capture.timeline_record()
    wanted = {spec.variable for spec in signature.gradients}
    columns = [place for place, one in enumerate(timeline.variables) if one in wanted]
    matrix = timeline.matrices.get(_SIZES[name])
    if matrix is None or len(columns) < len(wanted):
        return frozenset()
    # what was not measured is NaN, and below nothing
    sizes = np.asarray(matrix, np.float64)[:, columns]
    with np.errstate(all="ignore"):
        if name == "global_clipnorm":
            sizes = np.sqrt(np.square(sizes).sum(axis=1, keepdims=True))
        is_left = (sizes <= _SURELY_BELOW * limit).all(axis=1)
    steps = np.asarray(timeline.columns["step"])
    return frozenset(int(step) for step in steps[is_left])


def _clips(failure: Failure) -> bool:
    """Whether the optimizer clips gradients already: it bounds them, or takes their norm."""
    editor = failure.editor
    consumers = _main_consumers(editor)
    for spec in editor.record.signature.gradients:
        for key in consumers.get(spec.tensor, ()):
            if _is_update(editor, key) and _is_of_clipping(editor, key, consumers):
                return True
    return False


def _main_consumers(editor: ProgramEditor) -> Mapping[str, Sequence[OpKey]]:
    """The ops of the main graph that take each tensor.

    For many tensors at once: the editor looks through the whole graph for the consumers of one.
    """
    consumers: dict[str, list[OpKey]] = defaultdict(list)
    for name in editor.ops_of(""):
        for tensor in editor.data_inputs(("", name)):
            consumers[tensor].append(("", name))
    return consumers


def _is_of_clipping(
    editor: ProgramEditor, key: OpKey, consumers: Mapping[str, Sequence[OpKey]]
) -> bool:
    """Whether an op that takes a gradient is one of `clip_by_value`, `clip_by_norm`, ..."""
    op_type = editor.node(key).op
    if op_type in ("ClipByValue", "Minimum", "L2Loss"):
        return True
    if op_type not in ("Square", "Mul"):
        return False
    users = [user for output in editor.outputs(key) for user in consumers.get(output, ())]
    return any(editor.node(user).op == "Sum" for user in users)


def _is_update(editor: ProgramEditor, key: OpKey) -> bool:
    """Whether an op is the optimizer's; a check of the gradients is none."""
    info = editor.infos.get(key)
    return info is not None and info.phase == "update" and info.type not in _CHECKS


def _loss_scale(signature: Signature, failure: Failure) -> str | None:
    """The captured input that is the variable of Keras's LossScaleOptimizer."""
    if not signature.loss_scaled:
        return None
    variables = failure.window.replay.variables
    for spec in signature.captures:
        if spec.variable is None:
            continue
        if variables[spec.variable].path.rpartition("/")[2] == "dynamic_scale":
            return spec.tensor
    return None


def optimizer_of(failure: Failure) -> str:
    """Return how code names the class of the optimizer: `keras.optimizers.Adam`.

    Captures that do not hold it are asked for the names of the optimizer's variables. Their paths
    begin with the optimizer's name, which by default is that of the class: `adam/learning_rate`.
    """
    recorded = failure.window.signature().optimizers
    if recorded:
        return recorded[0]
    classes = {name.lower(): name for name in _OPTIMIZERS}
    for info in failure.window.replay.variables:
        if info.role == "optimizer":
            name = info.path.partition("/")[0].replace("_", "").rstrip("0123456789").lower()
            if name in classes:
                return f"keras.optimizers.{classes[name]}"
    return "optimizer"


def _is_by_hand(failure: Failure) -> bool:
    """Whether code of the user's own updates the weights, and no optimizer does."""
    has_state = any(info.role == "optimizer" for info in failure.window.replay.variables)
    return not has_state and not failure.window.signature().optimizers


def in_optimizers(failure: Failure, argument: str, note: str = "") -> str:
    """Return the code that gives an argument to each optimizer of the training, a line each."""
    names = failure.window.signature().optimizers or (optimizer_of(failure),)
    return "\n".join(f"{name}({argument}){note}" for name in names)


def positive_number(value: str | None, default: float) -> float:
    """Return a fix's number.

    Raises:
        BadValueError: It is none, or not above 0.
    """
    if value is None:
        return default
    try:
        parsed = float(value)
    except ValueError:
        raise BadValueError(f"Expected a number above 0. Received: {value}") from None
    if not parsed > 0 or not np.isfinite(parsed):
        raise BadValueError(f"Expected a number above 0. Received: {value}")
    return parsed
