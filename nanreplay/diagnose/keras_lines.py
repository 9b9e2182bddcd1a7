"""Lines of the user's that only call Keras: the op was made in Keras's own code."""

from __future__ import annotations

import re

from nanreplay.findings import Origin

_TRAINER_CALL = re.compile(r"\.(fit|evaluate|predict|train_on_batch|test_on_batch)\(")
_CALLS_USERS = ("keras.layers.Lambda", "tf_keras.layers.Lambda")
"""Layers of Keras's whose work is a function of the user's."""


def is_call_of_keras(code: str | None) -> bool:
    """Whether a line only starts Keras's training: no op of a step is made on it.

    It is the nearest line of the user's where layers, losses and optimizers are Keras's own, as in
    `Sequential` and functional models.
    """
    return code is not None and _TRAINER_CALL.search(code) is not None


def is_inside_keras(origin: Origin) -> bool:
    """Whether the op was made by Keras's code, which the line of the user's only calls."""
    if origin.source is None:
        return False
    if is_call_of_keras(origin.source.code):
        return True
    part = origin.part
    if part is None or not part.is_keras or part.place != "layer" or part.kind in _CALLS_USERS:
        return False
    # A function of the user's may be a setting of the layer, such as its activation, and so may
    # an object: a regularizer is called.
    own = f'="{origin.source.function}"'
    if origin.source.function == "__call__":
        return not any(text.startswith("activity_regularizer=") for text in part.settings)
    return not any(text.endswith(own) for text in part.settings)
