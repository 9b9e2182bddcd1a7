"""Staging areas of TensorFlow's, which hold what was fetched until Python takes it.

The variant of a function that trains stages each batch (`fetching`); the recorder takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from nanreplay.tensorflow_internals import tf_functions

STAGING_DEVICE = "/device:CPU:0"
TAKEN_TOGETHER = 8
"""Steps whose small batches are taken from a staging area at once."""


class FetchedBatches:
    """The staging area of what a function fetched, in order; each an Optional of flat components.

    A queue would lose the batch of a step that raises: TensorFlow cancels what waits to go into a
    queue as soon as another op has failed, but an op of a staging area runs to its end.

    Args:
        name: Name of the staging area, which functions share.
        returned: Name of that of what the steps of a call returned, where there is one.
    """

    def __init__(self, name: str, returned: str | None = None) -> None:
        self.name = name
        self.returned = returned
        self.together = TAKEN_TOGETHER
        """How many are taken at once, as a rule: one compiled call is several times as fast."""
        self._compiled: dict[int, Any] = {}
        self._n_counted = 0
        """How many of what steps have returned, and is not forgotten, were counted."""

    def take(self) -> Any:
        """All that was fetched since the last call: a vector of Optionals, as one variant tensor.

        None for nothing.
        """
        with tf.device(STAGING_DEVICE):
            count = _count_in(self.name)
            if count != self.together:
                return _unstaged(self.name, count)
        if count not in self._compiled:
            with tf.init_scope(), tf.device(STAGING_DEVICE):
                function = tf.function(lambda: _unstaged(self.name, count), autograph=False)
                self._compiled[count] = function.get_concrete_function()
        name = tf_functions.runtime_name(self._compiled[count])
        # Under the device that training was told to use, the function would look into that one's
        # staging areas, which are empty, and wait for ever.
        with tf.device(STAGING_DEVICE):
            return tf_functions.run_function(name, 1, [])[0]

    def take_returned(self) -> Any:
        """What steps have returned since it was forgotten, the last ones last; a vector as well."""
        if self.returned is None:
            return None
        self._n_counted = 0
        with tf.device(STAGING_DEVICE):
            return _unstaged(self.returned, _count_in(self.returned))

    def count_returned(self) -> int | None:
        """How many steps have returned since they were last counted; None where that is not known.

        What was fetched does not tell: it ends with an empty Optional where the data ends.
        """
        if self.returned is None:
            return None
        with tf.device(STAGING_DEVICE):
            n_returned = _count_in(self.returned)
        newly, self._n_counted = n_returned - self._n_counted, n_returned
        return newly

    def forget_returned(self) -> None:
        """Forget what steps have returned until now."""
        if self.returned is not None:
            self._n_counted = 0
            with tf.device(STAGING_DEVICE):
                tf.raw_ops.StageClear(dtypes=[tf.variant], shared_name=self.returned)


def _count_in(name: str) -> int:
    return int(tf.raw_ops.StageSize(dtypes=[tf.variant], shared_name=name))


def _unstaged(name: str, count: int) -> Any:
    """The first ones of a staging area; waits for them where there are fewer."""
    if not count:
        return None
    optionals = []
    for _ in range(count):
        (optional,) = tf.raw_ops.Unstage(dtypes=[tf.variant], shared_name=name)
        optionals.append(optional)
    return tf.stack(optionals)


def components_of(optional: Any, kinds: Sequence[Any]) -> list[Any] | None:
    """The flat components of an Optional (a scalar variant); None of an empty one.

    Args:
        optional: What a staging area gave.
        kinds: DTypes of the components.
    """
    if not bool(tf.raw_ops.OptionalHasValue(optional=optional)):
        return None
    shapes = [tf.TensorShape(None)] * len(kinds)
    components = tf.raw_ops.OptionalGetValue(
        optional=optional, output_types=list(kinds), output_shapes=shapes
    )
    return list(components)
