"""Recording a `tf.function` of a custom training loop."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from nanreplay.program import private_tf
from nanreplay.program.trace import TracedStep
from nanreplay.recorder.graph_step import GraphStep
from nanreplay.recorder.session import Session
from nanreplay.records import Trigger


def traced_step(session: Session, step: Any) -> TracedStep:
    """The `tf.function` `step` with the watch inside, made as it was made."""
    options = private_tf.function_options(step)
    return TracedStep(
        step.python_function,
        jit_compile=options.jit_compile,
        reduce_retracing=options.reduce_retracing,
        autograph=options.autograph,
        input_signature=step.input_signature,
        unwatched=session.unwatched,
    )


def traced_function(session: Session, step: Any, on_incident: Callable[[Trigger, int], None]) -> Callable[..., Any]:
    """A recorded stand-in for the `tf.function` `step`."""
    run = GraphStep(session, traced_step(session, step), step, on_incident)
    signature = inspect.signature(step.python_function)

    @functools.wraps(step.python_function)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            bound = signature.bind(*args, **kwargs)
            if bound.kwargs:
                return step(*args, **kwargs)
            args = bound.args
        return run(*tf.nest.map_structure(_as_tensor, args))

    return recorded


def _as_tensor(leaf: Any) -> Any:
    """Numpy arrays as tensors, as a `tf.function` converts them; a copy, since loops reuse their buffers."""
    return tf.constant(leaf) if isinstance(leaf, np.ndarray) else leaf
