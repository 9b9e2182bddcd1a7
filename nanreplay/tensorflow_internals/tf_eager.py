"""The one module that may import private TensorFlow and Keras modules, but for those of distribution strategies.

A test names what an upgrade moved. Everything else of the package goes through the small functions below.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from tensorflow.core.framework import op_def_pb2 as _op_def_pb2
from tensorflow.python import pywrap_tfe as _pywrap_tfe
from tensorflow.python.client import pywrap_tf_session as _tf_session
from tensorflow.python.eager import backprop as _backprop
from tensorflow.python.eager import context as _context
from tensorflow.python.eager import execute as _execute
from tensorflow.python.framework import kernels as _kernels
from tensorflow.python.framework import op_callbacks as _op_callbacks
from tensorflow.python.framework import op_def_library as _op_def_library
from tensorflow.python.framework import op_def_registry as _op_def_registry
from tensorflow.python.framework import ops as _ops
from tensorflow.python.ops.resource_variable_ops import BaseResourceVariable as _ResourceVariable
from tensorflow.python.util import _pywrap_determinism


def run_op(
    op_type: str, n_outputs: int, inputs: Sequence[Any], attrs: tuple[Any, ...]
) -> list[Any]:
    """Run one eager kernel. `attrs` alternates names and values; op callbacks are not called."""
    outputs: list[Any] = _execute.quick_execute(
        op_type, n_outputs, inputs, attrs, _context.context()
    )
    return outputs


def op_definition(op_type: str) -> Any:
    """Return the OpDef that this TensorFlow registers under `op_type`, or None."""
    return _op_def_registry.get(op_type)


@cache
def _cpu_kernels(op_type: str) -> list[dict[str, set[int]]]:
    """The types that each CPU kernel of an op is limited to, by attribute."""
    found = _kernels.get_registered_kernels_for_op(op_type).kernel
    here = [
        kernel for kernel in found if kernel.device_type in ("CPU", "DEFAULT")
    ]  # a DEFAULT one serves every device
    return [
        {each.name: set(each.allowed_values.list.type) for each in kernel.constraint}
        for kernel in here
    ]


def has_kernel(op_type: str, types: Mapping[str, Sequence[int]]) -> bool:
    """Whether the CPU has a kernel of `op_type` for these types (DataType enums, by attribute)."""
    return any(
        all(set(types.get(name, ())) <= allowed for name, allowed in limits.items())
        for limits in _cpu_kernels(op_type)
    )


def hook_gradient_functions(
    token: Callable[[str, Any], str],
    observed: Callable[[Callable[[str], Any], str, str, Any, Any], Any],
) -> Callable[[], None]:
    """Put `observed` around the gradient function of every op; returns what undoes it.

    Args:
        token: (name scope, outputs of the forward op) -> the scope that the tape remembers for it.
        observed: (call with a scope, op type, remembered scope, inputs, outputs) -> what the call returned.
    """
    original_record = _execute.record_gradient

    def record_gradient(op_name: str, inputs: Any, attrs: Any, outputs: Any) -> None:
        _pywrap_tfe.TFE_Py_RecordGradient(
            op_name, inputs, attrs, outputs, token(_ops.get_name_scope(), outputs)
        )

    def gradient_function(
        op_name: str,
        attr_tuple: Any,
        num_inputs: int,
        inputs: Any,
        outputs: Any,
        out_grads: Any,
        skip: Any,
        scope: str,
    ) -> Any:
        def call(real_scope: str) -> Any:
            return _backprop._gradient_function(
                op_name, attr_tuple, num_inputs, inputs, outputs, out_grads, skip, real_scope
            )

        return observed(call, op_name, scope or "", inputs, outputs)

    def undo() -> None:
        _execute.record_gradient = original_record
        _pywrap_tfe.TFE_Py_RegisterGradientFunction(_backprop._gradient_function)

    _execute.record_gradient = record_gradient
    _pywrap_tfe.TFE_Py_RegisterGradientFunction(gradient_function)
    return undo


@contextlib.contextmanager
def explicit_reads() -> Iterator[None]:
    """Read variables that this thread hands to kernels as ops of their own, which op callbacks are told of.

    The generated functions read a `tf.Variable` among their arguments in C++, and call no op callback for it.
    """
    original, own = _pywrap_tfe.TFE_Py_FastPathExecute, threading.get_ident()

    def execute(context: Any, op_type: str, name: Any, *args: Any) -> Any:
        if (
            threading.get_ident() == own
            and "Variable" not in op_type
            and not op_type.startswith("Resource")
        ):
            args = tuple(map(_read, args))
        return original(context, op_type, name, *args)

    _pywrap_tfe.TFE_Py_FastPathExecute = execute
    try:
        yield
    finally:
        _pywrap_tfe.TFE_Py_FastPathExecute = original


def _read(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)) and any(
        isinstance(each, _ResourceVariable) for each in argument
    ):
        return [_read(each) for each in argument]
    return argument.value() if isinstance(argument, _ResourceVariable) else argument


def gradient_places() -> list[tuple[Any, str]]:
    """Module and name of what `hook_gradient_functions` replaces in Python."""
    return [(_execute, "record_gradient")]


def add_op_callback(callback: Callable[..., Any]) -> Callable[[], None]:
    """Call `callback(op_type, inputs, attrs, outputs, op_name, graph)` after each op of this thread; returns what undoes it."""
    _op_callbacks.add_op_callback(callback)

    def undo() -> None:
        _op_callbacks.remove_op_callback(callback)

    return undo


def attr_value(value: Any, kind: str, name: str) -> Any:
    """An AttrValue proto from what an eager op was called with."""
    return _op_def_library.value_to_attr_value(value, kind, name)


def is_deterministic() -> bool:
    """Whether op determinism is on in this process."""
    return bool(_pywrap_determinism.is_enabled())


def set_deterministic(wanted: bool) -> None:
    """Turn op determinism on or off for this process. TensorFlow can only turn it on in public."""
    _pywrap_determinism.enable(wanted)


def registered_ops() -> list[str]:
    """Names of all ops that this TensorFlow registers."""
    every = _op_def_pb2.OpList.FromString(_tf_session.TF_GetBuffer(_tf_session.TF_GetAllOpList()))
    return [op.name for op in every.op]
