"""Private names of TensorFlow and Keras for variables and for the layers that own them.

The recorder uses them to find variables by their handles and to notice what assigns or draws.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context as _context
from tensorflow.python.ops import gen_candidate_sampling_ops as _gen_candidate_sampling_ops
from tensorflow.python.ops import gen_random_ops as _gen_random_ops
from tensorflow.python.ops import gen_resource_variable_ops as _gen_resource_variable_ops
from tensorflow.python.ops import gen_state_ops as _gen_state_ops
from tensorflow.python.ops import handle_data_util as _handle_data_util

from nanreplay.tensorflow_internals.tf_distribution import replica_variables

_ASSIGNING = re.compile(
    r"assign_((add|sub)_)?variable_op|resource_scatter_(nd_)?(add|sub|mul|div|min|max|update)"
)
_RANDOM = re.compile(
    r"random_(uniform|uniform_int|standard_normal|shuffle|poisson|poisson_v2)"
    r"|(parameterized_)?truncated_normal|multinomial"
)
_SAMPLERS = re.compile(r"\w+_candidate_sampler")


def new_handle(shape: Any, dtype: Any) -> Any:
    """The handle of a new variable, which has no value yet and is gone with its last handle.

    A `tf.Variable` has such a handle, and takes ten times as long to make.

    Args:
        shape: Shape of the variable, a `tf.TensorShape`.
        dtype: Its type, a `tf.DType`.
    """
    handle = _gen_resource_variable_ops.var_handle_op(
        shape=shape, dtype=dtype, shared_name=_context.anonymous_name()
    )
    data = _handle_data_util.create_handle_data(shape, dtype)
    _handle_data_util.set_handle_data(handle, data)
    return handle


def variable_type(handle: Any) -> tuple[Any, tuple[int, ...]] | None:
    """(dtype, shape) of the variable behind a resource handle.

    None when it is no variable, or when its shape is not known. A handle tells its variable's
    type in `_handle_data` alone; the variable itself may not be at hand.
    """
    data = getattr(handle, "_handle_data", None)
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    entry = data.shape_and_type[0]
    shape = tuple(int(axis.size) for axis in entry.shape.dim)
    if entry.shape.unknown_rank or min(shape, default=0) < 0:
        return None
    return entry.dtype, shape


def open_shape(handle: Any) -> tf.TensorShape | None:
    """The shape of the variable behind a handle, where that is not wholly known; else None."""
    data = getattr(handle, "_handle_data", None)
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    shape = tf.TensorShape(data.shape_and_type[0].shape)
    return None if shape.is_fully_defined() else shape


def handle_of(variable: Any) -> Any:
    """The resource handle of a `tf.Variable` or a Keras variable; None for anything else.

    Of a mirrored variable it is the handle of the first replica's.
    """
    return getattr(replica_variables(variable)[0], "handle", None)


def is_value(leaf: Any) -> bool:
    """Whether a leaf of a structure is a tensor, and no variable.

    `tf.is_tensor` is true of variables too; those of Keras have a dtype that is a string.
    """
    return tf.is_tensor(leaf) and handle_of(leaf) is None


def variables_in(owner: Any, which: str = "variables") -> list[Any]:
    """The variables of a layer, a model, an optimizer or a `tf.Module`; none before it is built."""
    try:
        variables = getattr(owner, which, ())
        return list(variables() if callable(variables) else variables)
    except Exception:
        # Models of Keras 2 raise a ValueError before they are built, and the property of a
        # user's layer may raise anything.
        return []


def assignment_functions() -> list[tuple[Any, str]]:
    """Module and name of the functions that assign variables eagerly.

    The first argument of each is the handle. Every `assign` of TensorFlow and Keras ends in one
    of these generated functions.
    """
    modules = (_gen_resource_variable_ops, _gen_state_ops)
    return [(module, name) for module in modules for name in _matching(module, _ASSIGNING)]


@cache
def random_functions() -> list[tuple[Any, str]]:
    """Module and name of the functions that draw eagerly from a kernel's own state.

    Those that have a gradient are left out. The state is in the kernel, where no public name
    reads it.
    """
    samplers = _gen_candidate_sampling_ops
    return [
        *((_gen_random_ops, name) for name in _matching(_gen_random_ops, _RANDOM)),
        *((samplers, name) for name in _matching(samplers, _SAMPLERS)),
    ]


def _matching(module: Any, pattern: re.Pattern[str]) -> list[str]:
    """The names in a module that a pattern matches as a whole."""
    return [name for name in vars(module) if pattern.fullmatch(name)]


def is_jit_chosen_by_keras(model: Any) -> bool:
    """Whether `compile` of a Keras model was left to decide on XLA (`jit_compile="auto"`).

    Keras then decides by the devices and keeps the outcome alone in `model.jit_compile`; the
    argument itself is in `_compile_config`.
    """
    config = getattr(getattr(model, "_compile_config", None), "config", {})
    return bool(config.get("jit_compile", "auto") == "auto")


def layers_of(model: Any) -> list[Any]:
    """A Keras model or layer and all layers within it; `model.layers` is one level deep."""
    flatten = getattr(model, "_flatten_layers", None)
    return list(flatten()) if callable(flatten) else []


def keras_2_loss_scaling(keras: Any) -> list[Any]:
    """The classes of Keras 2 that scale a loss, given the package `tf_keras`.

    The public `LossScaleOptimizer` is a front whose metaclass makes one of these two, so that
    replacing its methods would have no effect.
    """
    module = importlib.import_module(f"{keras.__name__}.src.mixed_precision.loss_scale_optimizer")
    return [module.LossScaleOptimizer, module.LossScaleOptimizerV3]
