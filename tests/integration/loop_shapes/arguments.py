"""How a step gets its batch: positions, keywords, and every kind of thing as an argument."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import attr
import numpy as np
import tensorflow as tf

from loop_shapes.base import FEATURES, ROWS, Run, make, shape, update


@shape()
def positional(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        return update(model, optimizer, x, y)

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def keywords(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        return update(model, optimizer, x, y)

    return run.loop(run.compiled(step), model, optimizer, lambda step, x, y: step(y=y, x=x))


@shape()
def keyword_only(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, *, targets: Any) -> Any:
        return update(model, optimizer, x, targets)

    return run.loop(run.compiled(step), model, optimizer, lambda step, x, y: step(x, targets=y))


@shape()
def any_keywords(run: Run) -> Any:
    model, optimizer = make()

    def step(**batch: Any) -> Any:
        return update(model, optimizer, batch["x"], batch["y"])

    return run.loop(run.compiled(step), model, optimizer, lambda step, x, y: step(x=x, y=y))


@shape()
def any_positions(run: Run) -> Any:
    model, optimizer = make()

    def step(*batch: Any) -> Any:
        return update(model, optimizer, *batch)

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def default_left_out(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any, scale: float = 1.0, name: str | None = None) -> Any:
        return update(model, optimizer, x * scale, y)

    return run.loop(run.compiled(step), model, optimizer)


@shape()
def keyword_behind_a_default_that_is_left_out(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, mask: Any = None, training: bool = False, *, targets: Any) -> Any:
        return update(model, optimizer, x, targets)

    def call(step: Any, x: Any, y: Any) -> None:
        step(x, training=True, targets=y)

    return run.loop(run.compiled(step), model, optimizer, call)


@shape()
def numpy_arrays(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        return update(model, optimizer, tf.convert_to_tensor(x), tf.convert_to_tensor(y))

    step = run.wrap(run.compiled(step), model=model, optimizer=optimizer)
    for x, y in run.arrays():
        step(x, y)
    return [model, optimizer]


@shape()
def numpy_scalar(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any, rate: Any) -> Any:
        optimizer.learning_rate.assign(rate)
        return update(model, optimizer, x, y)

    step = run.wrap(run.compiled(step), model=model, optimizer=optimizer)
    rates = np.linspace(1e-2, 1e-3, 8).astype("float32")
    for (x, y), rate in zip(run.batches(), rates, strict=False):
        step(x, y, rate)
    return [model, optimizer]


@shape()
def python_numbers(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any, scale: float, times: int, training: bool) -> Any:
        return update(model, optimizer, x * scale * times, y if training else -y)

    step = run.wrap(run.compiled(step), model=model, optimizer=optimizer)
    for number, (x, y) in enumerate(run.batches()):
        step(x, y, 0.5 + number // 4, 2, number < 7)
    return [model, optimizer]


@shape()
def text_and_none(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any, mode: str, weights: Any) -> Any:
        assert mode == "training"
        assert weights is None
        return update(model, optimizer, x, y)

    def call(step: Any, x: Any, y: Any) -> None:
        step(x, y, "training", None)

    return run.loop(run.compiled(step), model, optimizer, call)


@dataclasses.dataclass(eq=False)
class Pair:
    """A batch that TensorFlow takes as one object: each is traced anew, its tensors captured."""

    x: Any
    y: Any


@shape(unproved=True, slow=True)
def dataclass_argument(run: Run) -> Any:
    model, optimizer = make()

    def step(pair: Pair) -> Any:
        return update(model, optimizer, pair.x, pair.y)

    def call(step: Any, x: Any, y: Any) -> None:
        step(Pair(x, y))

    return run.loop(run.compiled(step), model, optimizer, call)


@dataclasses.dataclass
class Flattened:
    """A batch that says how it is taken apart, by TensorFlow's protocol for dataclasses."""

    x: Any
    y: Any

    def __tf_flatten__(self) -> tuple[Any, Any]:
        return (), (self.x, self.y)

    @classmethod
    def __tf_unflatten__(cls, metadata: Any, leaves: Any) -> Flattened:
        return cls(*leaves)


@shape()
def dataclass_that_flattens(run: Run) -> Any:
    model, optimizer = make()

    def step(batch: Flattened) -> Any:
        return update(model, optimizer, batch.x, batch.y)

    def call(step: Any, x: Any, y: Any) -> None:
        step(Flattened(x, y))

    return run.loop(run.compiled(step), model, optimizer, call)


@attr.s
class Attributes:
    """A batch as an attrs class, which TensorFlow takes apart by itself."""

    x = attr.ib()
    y = attr.ib()


@shape()
def attrs_argument(run: Run) -> Any:
    model, optimizer = make()

    def step(batch: Attributes) -> Any:
        return update(model, optimizer, batch.x, batch.y)

    def call(step: Any, x: Any, y: Any) -> None:
        step(Attributes(x, y))

    return run.loop(run.compiled(step), model, optimizer, call)


class Named(NamedTuple):
    """A batch as a named tuple."""

    x: Any
    y: Any
    weight: Any = 1.0


@shape()
def namedtuple_argument(run: Run) -> Any:
    model, optimizer = make()

    def step(batch: Named) -> Any:
        return update(model, optimizer, batch.x * batch.weight, batch.y)

    return run.loop(run.compiled(step), model, optimizer, lambda step, x, y: step(Named(x, y)))


@shape()
def nested_dicts(run: Run) -> Any:
    model, optimizer = make()

    def step(batch: dict[str, Any]) -> Any:
        return update(model, optimizer, batch["inputs"]["x"], batch["targets"][0])

    def call(step: Any, x: Any, y: Any) -> None:
        step({"inputs": {"x": x, "unused": {}}, "targets": [y, None]})

    return run.loop(run.compiled(step), model, optimizer, call)


@shape(xla="XLA has no kernel that makes a dense tensor of a ragged one", unproved=True)
def ragged(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        return update(model, optimizer, x.to_tensor(shape=[ROWS, FEATURES]), y)

    def call(step: Any, x: Any, y: Any) -> None:
        step(tf.RaggedTensor.from_tensor(x), y)

    return run.loop(run.compiled(step), model, optimizer, call)


@shape(unproved=True)
def sparse(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        return update(model, optimizer, tf.reshape(tf.sparse.to_dense(x), [ROWS, FEATURES]), y)

    def call(step: Any, x: Any, y: Any) -> None:
        step(tf.sparse.from_dense(x), y)

    return run.loop(run.compiled(step), model, optimizer, call)


class Example(tf.experimental.ExtensionType):  # type: ignore[misc]
    """A batch as an extension type."""

    x: tf.Tensor
    y: tf.Tensor


@shape()
def extension_type(run: Run) -> Any:
    model, optimizer = make()

    def step(batch: Example) -> Any:
        return update(model, optimizer, batch.x, batch.y)

    return run.loop(run.compiled(step), model, optimizer, lambda step, x, y: step(Example(x, y)))


@shape()
def model_and_optimizer_as_arguments(run: Run) -> Any:
    model, optimizer = make()

    def call(step: Any, x: Any, y: Any) -> None:
        step(model, optimizer, x, y)

    return run.loop(run.compiled(update), model, optimizer, call)


@shape()
def variable_as_argument(run: Run) -> Any:
    model, optimizer = make()
    scale = tf.Variable(1.0)

    def step(x: Any, y: Any, scale: Any) -> Any:
        scale.assign(scale * 0.9)
        return update(model, optimizer, x * scale, y)

    def call(step: Any, x: Any, y: Any) -> None:
        step(x, y, scale)

    return [*run.loop(run.compiled(step), model, optimizer, call), scale]


@shape()
def dataset_loop(run: Run) -> Any:
    model, optimizer = make()

    def step(batch: Any) -> Any:
        x, y = batch
        return update(model, optimizer, x, y)

    step = run.wrap(run.compiled(step), model=model, optimizer=optimizer)
    for batch in run.dataset().prefetch(1):
        step(batch)
        if run.stopped():
            break
    return [model, optimizer]


@shape()
def smaller_batches_at_the_end(run: Run) -> Any:
    model, optimizer = make()

    def step(x: Any, y: Any) -> Any:
        return update(model, optimizer, x, y)

    step = run.wrap(run.compiled(step), model=model, optimizer=optimizer)
    for number, (x, y) in enumerate(run.batches()):
        rows = 8 if number < 4 else 5
        step(x[:rows], y[:rows])
    return [model, optimizer]
