"""Private names of TensorFlow for eager ops: running one, watching them run, what is registered.

Replays run single kernels with it. The recorder hooks the gradient tape and the op callbacks.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tensorflow.core.framework import op_def_pb2 as _op_def_pb2
from tensorflow.python import pywrap_tfe as _pywrap_tfe
from tensorflow.python.client import pywrap_tf_session as _tf_session
from tensorflow.python.eager import backprop as _backprop
from tensorflow.python.eager import context as _context
from tensorflow.python.eager import core as _core
from tensorflow.python.eager import execute as _execute
from tensorflow.python.eager import record as _record
from tensorflow.python.framework import errors as _errors
from tensorflow.python.framework import op_callbacks as _op_callbacks
from tensorflow.python.framework import op_def_library as _op_def_library
from tensorflow.python.framework import op_def_registry as _op_def_registry
from tensorflow.python.framework import ops as _ops
from tensorflow.python.ops import custom_gradient as _custom_gradient
from tensorflow.python.ops.resource_variable_ops import BaseResourceVariable as _ResourceVariable
from tensorflow.python.util import _pywrap_determinism


def run_op(
    op_type: str, n_outputs: int, inputs: Sequence[Any], attrs: tuple[Any, ...]
) -> list[Any]:
    """Run one eager kernel. `attrs` alternates names and values; op callbacks are not called.

    `tf.raw_ops` has other argument names for each op, and its functions convert and record.
    """
    context = _context.context()
    outputs: list[Any] = _execute.quick_execute(op_type, n_outputs, inputs, attrs, context)
    return outputs


def op_definition(op_type: str) -> Any:
    """Return the OpDef that this TensorFlow registers under `op_type`, or None.

    The registry has no public reader. An OpDef tells the names and types of inputs and attributes.
    """
    return _op_def_registry.get(op_type)


def hook_gradient_functions(
    token: Callable[[str, Any], str],
    observed: Callable[..., Any],
) -> Callable[[], None]:
    """Put `observed` around the gradient function of every op; returns what undoes it.

    The tape lives in C++. It calls back to Python in two places: `record_gradient` as an op runs,
    with the name scope to differentiate it in, and the registered gradient function, with that
    scope. The scope is all that goes from the one to the other, so it carries a token. The tape
    calls the gradient function of a `tf.custom_gradient` by itself; it is handed to
    `record_operation`.

    Args:
        token: Given the name scope and the outputs of the forward op, returns the scope that the
            tape remembers for it.
        observed: Given a function that calls the original with a scope, the op type, the
            remembered scope, inputs and outputs, returns what the call returned. With
            `is_custom=True` the function is one that the user wrote.
    """
    original_record, original_operation = _execute.record_gradient, _record.record_operation

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

    def record_operation(
        op_type: str,
        output_tensors: Any,
        input_tensors: Any,
        backward_function: Any,
        forward_function: Any = None,
    ) -> None:
        # Functions of `tf.function` are recorded here, too, with gradients that TensorFlow made.
        is_custom = getattr(backward_function, "__module__", None) == _custom_gradient.__name__
        if is_custom and len(output_tensors):
            made = getattr(output_tensors[0], "op", None)  # an eager tensor has none
            scope = token(_ops.get_name_scope(), output_tensors)
            backward_function = _watched(
                backward_function, getattr(made, "type", "Identity"), scope, observed
            )
        original_operation(
            op_type, output_tensors, input_tensors, backward_function, forward_function
        )

    def undo() -> None:
        _record.record_operation = original_operation
        _execute.record_gradient = original_record
        _pywrap_tfe.TFE_Py_RegisterGradientFunction(_backprop._gradient_function)

    _execute.record_gradient = record_gradient
    _record.record_operation = record_operation
    _pywrap_tfe.TFE_Py_RegisterGradientFunction(gradient_function)
    return undo


def _watched(
    backward: Callable[..., Any], op_type: str, scope: str, observed: Callable[..., Any]
) -> Callable[..., Any]:
    """The user's gradient function, called by `observed`; it needs no scope."""

    def watched(*gradients: Any) -> Any:
        return observed(lambda _: backward(*gradients), op_type, scope, (), (), is_custom=True)

    return watched


@contextlib.contextmanager
def explicit_reads() -> Iterator[None]:
    """Read variables that this thread hands to kernels as ops of their own.

    The generated functions read a `tf.Variable` among their arguments in C++, where no op callback
    is called for it. An explicit read is an op, which callbacks are told of.
    """
    original = _pywrap_tfe.TFE_Py_FastPathExecute
    own_thread = threading.get_ident()

    def execute(context: Any, op_type: str, name: Any, *args: Any) -> Any:
        # Ops on variables take the handle itself: they would read without end.
        takes_handles = "Variable" in op_type or op_type.startswith("Resource")
        if threading.get_ident() == own_thread and not takes_handles:
            args = tuple(map(_read, args))
        return original(context, op_type, name, *args)

    _pywrap_tfe.TFE_Py_FastPathExecute = execute
    try:
        yield
    finally:
        _pywrap_tfe.TFE_Py_FastPathExecute = original


def _read(argument: Any) -> Any:
    """The value of a variable, also within a list; any other argument as it is."""
    if isinstance(argument, _ResourceVariable):
        return argument.value()
    is_list = isinstance(argument, (list, tuple))
    if is_list and any(isinstance(entry, _ResourceVariable) for entry in argument):
        return list(map(_read, argument))
    return argument


@contextlib.contextmanager
def failing_ops(note: Callable[[str, Sequence[Any], Sequence[Any]], None]) -> Iterator[None]:
    """Tell of ops of this thread whose kernels raise; op callbacks are called after an op alone.

    The fast way in C++ takes arguments that it converts itself. Where it fails, the generated
    function is told to take its slow way, which hands tensors and all attributes to `Execute`, and
    fails alike.

    Args:
        note: Called as `note(op_type, inputs, attrs)`; `attrs` alternates names and values.
    """
    fast, slow = _pywrap_tfe.TFE_Py_FastPathExecute, _pywrap_tfe.TFE_Py_Execute
    own_thread = threading.get_ident()

    def execute_fast(context: Any, op_type: str, name: Any, *args: Any) -> Any:
        try:
            return fast(context, op_type, name, *args)
        except _core._NotOkStatusException as error:
            if threading.get_ident() != own_thread:
                raise
            raise _core._FallbackException(str(error)) from error

    def execute(handle: Any, device: Any, op_type: Any, inputs: Any, attrs: Any, *more: Any) -> Any:
        try:
            return slow(handle, device, op_type, inputs, attrs, *more)
        except _errors.OpError:
            if threading.get_ident() == own_thread:
                note(op_type, inputs, attrs or ())
            raise

    _pywrap_tfe.TFE_Py_FastPathExecute, _pywrap_tfe.TFE_Py_Execute = execute_fast, execute
    try:
        yield
    finally:
        _pywrap_tfe.TFE_Py_FastPathExecute, _pywrap_tfe.TFE_Py_Execute = fast, slow


def replaced_gradient_functions() -> list[tuple[Any, str]]:
    """Module and name of what `hook_gradient_functions` replaces in Python."""
    return [(_execute, "record_gradient"), (_record, "record_operation")]


def number_of(tensor: Any) -> int:
    """The number of an eager tensor; older ones have lower numbers, which no public name tells."""
    return int(tensor._id)


def add_op_callback(callback: Callable[..., Any]) -> Callable[[], None]:
    """Call a function after each op of this thread; returns what undoes it.

    TensorFlow's debugger uses the same hook, which has no public name.

    Args:
        callback: Called as `callback(op_type, inputs, attrs, outputs, op_name, graph)`.
    """
    _op_callbacks.add_op_callback(callback)

    def undo() -> None:
        _op_callbacks.remove_op_callback(callback)

    return undo


def attr_value(value: Any, kind: str, name: str) -> Any:
    """An AttrValue proto from what an eager op was called with.

    The conversion of dtypes, shapes and lists is TensorFlow's own, so that a graph made of eager
    ops holds what a trace would hold.
    """
    return _op_def_library.value_to_attr_value(value, kind, name)


def is_deterministic() -> bool:
    """Whether op determinism is on in this process; the public switch cannot be read."""
    return bool(_pywrap_determinism.is_enabled())


def set_deterministic(wanted: bool) -> None:
    """Turn op determinism on or off for this process; the public function can only turn it on."""
    _pywrap_determinism.enable(wanted)


def registered_ops() -> list[str]:
    """Names of all ops that this TensorFlow registers, also those that `tf.raw_ops` lacks."""
    serialized = _tf_session.TF_GetBuffer(_tf_session.TF_GetAllOpList())
    return [op.name for op in _op_def_pb2.OpList.FromString(serialized).op]
