"""What one step returns and a later one is given: a state that the training loop carries.

`state = step(batch, state)` keeps it in no variable. Where it is not finite, the step that was
given it holds it in its batch, and yet it is no data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanreplay.bisect.op_trace import StepTrace
from nanreplay.bisect.tensor_stats import is_float
from nanreplay.capture.arrays import as_array

_MOST_STEPS = 4
"""How many steps before the one that was given it are looked at: steps may take turns."""


def returned_before(trace: StepTrace, given: NDArray[Any]) -> tuple[int, str] | None:
    """Return which earlier step returned what is not finite in an array, and as which tensor.

    None where none did. What a step returned is taken for the array where it is as large and of
    the same type, and where each of its elements that is not finite is so in the array as well.
    The others may have changed: code between the steps may have scaled them. A step whose outputs
    are known to be of other sizes does not run, for that takes the state before it.

    Args:
        trace: What the run of the step showed that was given the array.
        given: The array.
    """
    runner, step = trace.runner, trace.step
    for earlier in range(step - 1, max(step - 1 - _MOST_STEPS, -1), -1):
        if earlier not in runner.steps:
            return None
        signature = runner.signature(earlier)
        is_alike = signature is runner.signature(step)
        outputs = []
        for name in dict.fromkeys(signature.outputs):
            if not (is_alike and _has_other_shape(trace, name, given.shape)):
                outputs.append(name)
        returned = runner.run(earlier, None, fetches=outputs, update=False) if outputs else {}
        for name in outputs:
            if _may_be(returned[name], given):
                return earlier, name
    return None


def _has_other_shape(trace: StepTrace, output: str, shape: tuple[int, ...]) -> bool:
    """Whether a step has returned an output that is known to be of another shape."""
    value = trace.find(output)
    stat = None if value is None else trace.stat(value)
    return stat is not None and stat.shape != shape


def _may_be(returned: Any, given: NDArray[Any]) -> bool:
    if not is_float(returned):
        return False
    array = as_array(returned)
    if array.ndim == 0 or array.shape != given.shape or array.dtype != given.dtype:
        return False
    bad = ~np.isfinite(array)
    return bool(bad.any()) and not (bad & np.isfinite(given)).any()
