"""Variables whose shape is not fixed: steps that use them run, and cannot be replayed.

A recorded state is one array of a known shape a variable. Who uses such a variable is told of it
at its first step, in one line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nanreplay.recorder import notices
from nanreplay.tensorflow_internals import tf_variables

if TYPE_CHECKING:
    from nanreplay.recorder.recording import Recording


def tell_open_shapes(
    recording: Recording, handles: Iterable[Any], named: Iterable[Any] = ()
) -> None:
    """Say once of each variable without a fixed shape that its steps cannot be replayed.

    Args:
        recording: What records the steps; its file says so, too.
        handles: Handles that a step captures or reads; None, and other resources, are left out.
        named: `tf.Variable`s that some of them may belong to.
    """
    told = recording.variables.told_open
    for handle in handles:
        shape = None if handle is None else tf_variables.open_shape(handle)
        if shape is None or id(handle) in told:
            continue
        told.add(id(handle))
        name = next((one.name for one in named if tf_variables.handle_of(one) is handle), "")
        which = f"the variable `{name.partition(':')[0]}`" if name else "a variable"
        problem = (
            f"{which} has no fixed shape ({shape}), so that steps which use it cannot be "
            "replayed. With a fixed shape they can."
        )
        recording.notes.append(f"{problem[0].upper()}{problem[1:]}")
        notices.say(problem)
