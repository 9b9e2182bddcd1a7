"""`StepTensors`: the tensors of a step by name, for scripts and for `nanreplay shell`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from nanreplay.errors import NanreplayError
from nanreplay.explore.explorer import Explorer
from nanreplay.explore.step_view import StepView
from nanreplay.replay.provenance import ValueId

_MOST_MEANT = 3


class NoSuchTensorError(NanreplayError, KeyError):
    """A step has no tensor of a name."""

    def __str__(self) -> str:
        """The message as it is: a KeyError would put it into quotes."""
        return str(self.args[0])


class StepTensors(Mapping[str, NDArray[Any]]):
    """The tensors of one step as numpy arrays, by their names in TensorFlow's graph.

    ```python
    trace["dense_1/Relu:0"]        # the output of an op
    trace["dense_1/Relu"]          # the same
    trace["dense_1/kernel"]        # a variable just before the step
    trace["batch[0]"]              # a part of the batch
    trace["while/body/Mul:0#3"]    # of an op in a loop, its fourth execution
    ```

    A tensor that the run of the step did not keep is had by running what leads to it.

    Args:
        explorer: Of the capture.
        step: One of its steps.
    """

    def __init__(self, explorer: Explorer, step: int) -> None:
        self._explorer = explorer
        self.step = step
        self._values = dict(_named_values(self.view))

    @property
    def view(self) -> StepView:
        """The ops of the step, in the order in which they ran."""
        return self._explorer.step_view(self.step)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a tensor.

        Raises:
            NoSuchTensorError: There is none of that name.
        """
        value = self._values.get(name) or self._values.get(f"{name}:0")
        if value is None:
            meant = difflib.get_close_matches(name, self._values, _MOST_MEANT, cutoff=0.5)
            some = meant or list(self._values)[:_MOST_MEANT]
            question = f"Did you mean {', '.join(meant)}?"
            hint = question if meant else f"Its names are such as {', '.join(some)}."
            raise NoSuchTensorError(f"Step {self.step} has no tensor {name!r}. {hint}")
        return self._explorer.array(self.step, value)

    def __iter__(self) -> Iterator[str]:
        """Names of the tensors: what entered the step, then ops in the order of execution."""
        return iter(self._values)

    def __len__(self) -> int:
        """How many tensors there are."""
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of that name; nothing is run."""
        return name in self._values or f"{name}:0" in self._values

    def __repr__(self) -> str:
        """Step and number of tensors, as an interactive session shows it."""
        return f"<{len(self)} tensors of step {self.step}, such as trace[{next(iter(self))!r}]>"

    def _ipython_key_completions_(self) -> list[str]:
        """Names that tab completes in `trace["`."""
        # IPython asks for a method of this name.
        return list(self._values)


def _named_values(view: StepView) -> Iterator[tuple[str, ValueId]]:
    """Every value with numbers of its own, by name; a second execution has `#1` after it."""
    for feed in view.feeds:
        # Constants have names of TensorFlow's making, and handles hold no numbers.
        if feed.kind != "constant" and feed.stat is not None:
            yield feed.name, feed.value
    seen: dict[str, int] = {}
    for op in view.ops:
        for output in range(len(op.outputs)):
            # An op in a loop runs many times under one name; the first execution has the plain one.
            name = f"{op.name}:{output}"
            count = seen.get(name, 0)
            seen[name] = count + 1
            yield f"{name}#{count}" if count else name, ValueId(op.serial, output)
