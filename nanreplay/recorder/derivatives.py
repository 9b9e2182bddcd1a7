"""Losses and gradients of a step that runs again, and what of them goes into the timeline.

`reexecution` fetches them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray

from nanreplay.capture.arrays import as_array
from nanreplay.program.nonfinite_values import read_variable, real
from nanreplay.recorder.step_sizes import (
    change,
    dense_gradient,
    size_of_gradient,
    values_of_gradient,
)
from nanreplay.recorder.timeline_ring import StepNumbers
from nanreplay.records import Signature, VariableInfo


@dataclass(slots=True)
class Derivatives:
    """The losses and the gradients of one step, where they were asked for."""

    losses: list[Any] = field(default_factory=list)
    gradients: dict[int, Any] = field(default_factory=dict)
    """By variable; those of embeddings are IndexedSlices."""

    def dense(self) -> dict[int, NDArray[Any]]:
        """The gradients as arrays."""
        return {index: dense_gradient(value) for index, value in self.gradients.items()}


def derivative_names(signature: Signature) -> list[str]:
    """Names of the tensors of losses and gradients, each once."""
    names = list(signature.losses)
    for spec in signature.gradients:
        for name in (spec.tensor, spec.indices):
            if name:
                names.append(name)
    return list(dict.fromkeys(names))


def derivatives_of(
    signature: Signature, infos: Sequence[VariableInfo], fetched: Sequence[Any]
) -> Derivatives:
    """What was fetched by `derivative_names`, by loss and by variable.

    Args:
        signature: Of the program.
        infos: Infos of all variables.
        fetched: The tensors.
    """
    value_of = dict(zip(derivative_names(signature), fetched, strict=True))
    losses = [value_of[name] for name in signature.losses]
    gradients = {}
    for spec in signature.gradients:
        gradient = value_of[spec.tensor]
        if spec.indices:
            indices = tf.cast(value_of[spec.indices], tf.int64)
            shape = tf.constant(infos[spec.variable].shape, tf.int64)
            gradient = tf.IndexedSlices(gradient, indices, shape)
        gradients[spec.variable] = gradient
    return Derivatives(losses, gradients)


def measure(derivatives: Derivatives, numbers: StepNumbers) -> None:
    """Put the losses and the sizes of the gradients into `numbers`."""
    numbers.losses = [float(tf.reduce_sum(real(loss))) for loss in derivatives.losses]
    norms, maxima = {}, {}
    for index, gradient in derivatives.gradients.items():
        norms[index], maxima[index] = size_of_gradient(real(values_of_gradient(gradient)))
    numbers.gradient_norms, numbers.gradient_maxima = norms, maxima


def measure_change(before: dict[int, Any], variables: Sequence[Any], numbers: StepNumbers) -> None:
    """Put how far the step moved the weights into `numbers`.

    Args:
        before: The weights before it, by variable; emptied on the way, so that no second state is
            held.
        variables: `tf.Variable`s by index, after it.
        numbers: Of the step.
    """
    ratios, norms = {}, {}
    for index in list(before):
        after = as_array(read_variable(variables[index].handle))
        ratios[index], norms[index] = change(as_array(before.pop(index)), after)
    numbers.update_ratios, numbers.weight_norms = ratios, norms
