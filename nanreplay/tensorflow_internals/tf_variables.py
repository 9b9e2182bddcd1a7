"""The one module that may import private TensorFlow and Keras modules, but for those of distribution strategies.

A test names what an upgrade moved. Everything else of the package goes through the small functions below.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from tensorflow.python.ops import gen_random_ops as _gen_random_ops
from tensorflow.python.ops import gen_resource_variable_ops as _gen_resource_variable_ops
from tensorflow.python.ops import gen_state_ops as _gen_state_ops

from nanreplay.tensorflow_internals.tf_distribution import components


def variable_type(handle: Any) -> tuple[Any, tuple[int, ...]] | None:
    """(dtype, shape) of the variable behind a resource handle; None when it is no variable or its shape is not known."""
    data = getattr(handle, "_handle_data", None)
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    entry = data.shape_and_type[0]
    shape = tuple(int(axis.size) for axis in entry.shape.dim)
    return (
        (entry.dtype, shape)
        if not entry.shape.unknown_rank and min(shape, default=0) >= 0
        else None
    )


def handle_of(variable: Any) -> Any:
    """The resource handle of a `tf.Variable` or a Keras variable (of the first replica's, if mirrored), None for anything else."""
    return getattr(components(variable)[0], "handle", None)


def variables_in(owner: Any, which: str = "variables") -> list[Any]:
    """The variables of a layer, a model, an optimizer, a `tf.Module`; none of what has not made them yet."""
    try:
        found = getattr(owner, which, ())
        return list(found() if callable(found) else found)
    except Exception:  # models of Keras 2 raise a ValueError before they are built; a layer's own property may raise anything
        return []


def assignment_functions() -> list[tuple[Any, str]]:
    """Module and name of the functions that assign variables eagerly; the handle is their first argument."""
    modules = (_gen_resource_variable_ops, _gen_state_ops)
    names = re.compile(
        r"assign_((add|sub)_)?variable_op|resource_scatter_(nd_)?(add|sub|mul|div|min|max|update)"
    )
    return [(module, name) for module in modules for name in vars(module) if names.fullmatch(name)]


@cache
def random_functions() -> list[tuple[Any, str]]:
    """Module and name of the functions that draw eagerly from a kernel's own state, but of those that have a gradient."""
    names = re.compile(
        r"random_(uniform|uniform_int|standard_normal|shuffle|poisson|poisson_v2)|(parameterized_)?truncated_normal|multinomial"
    )
    return [(_gen_random_ops, name) for name in vars(_gen_random_ops) if names.fullmatch(name)]


def is_jit_chosen_by_keras(model: Any) -> bool:
    """Whether `compile` of a Keras model was left to decide on XLA (`jit_compile="auto"`), which it does by the devices."""
    config = getattr(getattr(model, "_compile_config", None), "config", {})
    return bool(config.get("jit_compile", "auto") == "auto")


def layers_of(model: Any) -> list[Any]:
    """A Keras model or layer and all layers within it."""
    flatten = getattr(model, "_flatten_layers", None)
    return list(flatten()) if callable(flatten) else []


def keras_2_loss_scaling(keras: Any) -> list[Any]:
    """The classes of Keras 2 that scale a loss; the public one is made by a metaclass."""
    module = __import__(
        f"{keras.__name__}.src.mixed_precision.loss_scale_optimizer",
        fromlist=["LossScaleOptimizer"],
    )
    return [module.LossScaleOptimizer, module.LossScaleOptimizerV3]
