"""What is told of the settings of layers, losses and optimizers."""

from __future__ import annotations

from typing import Any

import keras
import pytest

from nanreplay.program.keras_parts import layer_part, parts_of
from nanreplay.program.observation import Observation


class Own(keras.layers.Layer):
    epsilon = 1e-3


def soft(x: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("layer", "code"),
    [
        (keras.layers.LayerNormalization(epsilon=0.0),
         'LayerNormalization(epsilon=0.0, dtype="float32")'),
        (keras.layers.Dense(2, "relu", dtype="mixed_float16"),
         'Dense(activation="relu", dtype="mixed_float16")'),
        (keras.layers.Dense(2, soft), 'Dense(activation="soft", dtype="float32")'),
        (keras.layers.Dense(2), 'Dense(dtype="float32")'),
        (Own(), 'Own(epsilon=0.001, dtype="float32")'),
    ],
    ids=["norm", "half", "function", "linear", "own"],
)  # fmt: skip
def test_a_layer_reads_as_code_makes_it(layer: Any, code: str) -> None:
    part = layer_part("encoder/norm", layer)
    assert (part.code, part.path) == (code, "encoder/norm")
    assert part.is_keras == (type(layer) is not Own)


@pytest.mark.parametrize(
    ("loss", "code"),
    [
        ("mse", "mse"),
        (keras.losses.BinaryCrossentropy(from_logits=True),
         "BinaryCrossentropy(from_logits=True, label_smoothing=0.0)"),
        (keras.losses.Huber(delta=2.0), "Huber(delta=2.0)"),
        (soft, "soft"),
        (["mse", "mae"], "losses(mse, mae)"),
        ({"a": "mse", "b": keras.losses.Poisson()}, "losses(a=mse, b=Poisson)"),
    ],
    ids=["name", "logits", "huber", "function", "list", "dict"],
)  # fmt: skip
def test_the_compiled_loss_and_the_optimizer(loss: Any, code: str) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    if isinstance(loss, (list, dict)):
        model.loss = loss
    else:
        model.compile(keras.optimizers.RMSprop(centered=True, clipnorm=1.0), loss)
    seen, optimizer = Observation(), keras.optimizers.RMSprop(centered=True, clipnorm=1.0)
    seen.layers.append(model)
    seen.optimizers.append(optimizer)
    seen.parts["root/dense"] = layer_part("root/dense", model.layers[0])
    layer, *each, compiled, update = parts_of(seen, "root")
    assert [part.path for part in each] == {
        "list": ["mse", "mae"], "dict": ["mse", "poisson"]
    }.get(type(loss).__name__, [])  # fmt: skip
    assert layer.path == "dense"
    assert (compiled.place, compiled.code) == ("loss", code)
    assert (update.place, update.code) == (
        "optimizer",
        "RMSprop(epsilon=1e-07, centered=True, clipnorm=1.0)",
    )


def test_a_setting_that_raises_costs_no_more_than_itself() -> None:
    class Raising(keras.layers.Layer):
        @property
        def epsilon(self) -> float:
            raise RuntimeError("not now")

    assert layer_part("raising", Raising()).settings == ('dtype="float32"',)
