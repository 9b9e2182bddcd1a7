"""What Keras's layers, losses and optimizers are set to, for who reads of an op inside of them.

The nearest line of the user's code only calls such a part, or starts the whole training. What the
part was made with says more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nanreplay.program.observation import Observation
from nanreplay.records import SEVERAL_LOSSES, KerasPart

_LIBRARIES = ("keras", "tf_keras")
_OF_LAYERS = ("activation", "recurrent_activation", "negative_slope", "epsilon", "rate")
_OF_LOSSES = ("from_logits", "label_smoothing", "delta", "gamma", "alpha", "log_input")
_OF_OPTIMIZERS = ("epsilon", "centered", "clipnorm", "clipvalue", "global_clipnorm")
"""Settings that may make a value non-finite, or keep it from becoming so."""


def layer_part(path: str, layer: Any) -> KerasPart:
    """Describe a layer.

    Args:
        path: Chain of the layers that were being called, this one last.
        layer: The layer.
    """
    policy = getattr(getattr(layer, "dtype_policy", None), "name", None)
    settings = [*_settings(layer, _OF_LAYERS), *_own_regularizer(layer)]
    settings += _setting("dtype", policy)
    return KerasPart("layer", path, class_name(layer, "layers"), tuple(settings))


def _own_regularizer(layer: Any) -> Iterator[str]:
    """What the user wrote of the layer's loss: a function, or an object that is called."""
    regularizer = getattr(layer, "activity_regularizer", None)
    module = getattr(regularizer, "__module__", None) or ""
    if module.partition(".")[0] not in _LIBRARIES:
        yield from _setting("activity_regularizer", regularizer)


def parts_of(seen: Observation, root: str | None) -> tuple[KerasPart, ...]:
    """Describe all that a step called of Keras: layers, the compiled loss, the optimizers.

    Args:
        seen: What was noted while the step was traced, or ran.
        root: Name of the outermost model, with which no path begins.
    """
    parts = []
    for path, part in seen.parts.items():
        head, _, rest = path.partition("/")
        own_path = rest if rest and head == root else path
        parts.append(KerasPart(part.place, own_path, part.kind, part.settings))
    for model in seen.layers:
        loss = getattr(model, "loss", None)
        if loss is not None:
            parts.extend(_loss_parts(loss))
    for optimizer in seen.optimizers:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        settings = tuple(_settings(inner, _OF_OPTIMIZERS))
        parts.append(KerasPart("optimizer", "", class_name(inner, "optimizers"), settings))
    return tuple(parts)


def _loss_parts(losses: Any) -> Iterator[KerasPart]:
    """The compiled loss; of several, each with the scope of its ops as its path, then all."""
    if not isinstance(losses, (list, tuple, dict)):
        yield _loss_part(losses)
        return
    if not isinstance(losses, dict):
        losses = dict(enumerate(losses))
    texts = []
    for key, loss in losses.items():
        if isinstance(loss, (list, tuple, dict)):
            texts.append(f"{key}=...")
        elif loss is not None:
            part = _loss_part(loss)
            texts.append(part.code if isinstance(key, int) else f"{key}={part.code}")
            scope = loss if isinstance(loss, str) else getattr(loss, "name", part.kind)
            yield replace(part, path=str(scope))
    yield KerasPart("loss", "", SEVERAL_LOSSES, tuple(texts))


def _loss_part(loss: Any) -> KerasPart:
    if isinstance(loss, str):
        return KerasPart("loss", "", loss, ())
    if callable(loss) and hasattr(loss, "__name__"):
        return KerasPart("loss", "", loss.__name__, ())
    # Losses that wrap a function keep its settings as arguments for it, without a public name.
    settings = {**getattr(loss, "_fn_kwargs", {}), **getattr(loss, "__dict__", {})}
    texts: list[str] = []
    for name in _OF_LOSSES:
        texts.extend(_setting(name, settings.get(name)))
    return KerasPart("loss", "", class_name(loss, "losses"), tuple(texts))


def class_name(part: Any, folder: str) -> str:
    """How code names a class: `keras.layers.Dense`, `MyLayer`."""
    kind = type(part)
    library = kind.__module__.partition(".")[0]
    if library not in _LIBRARIES:
        return kind.__name__
    within = "" if ".models" in kind.__module__ else f"{folder}."
    return f"{library}.{within}{kind.__name__}"


def _settings(part: Any, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        value = None
        with contextlib.suppress(Exception):  # a property of a layer of the user's may raise
            value = getattr(part, name, None)
        yield from _setting(name, value)


def _setting(name: str, value: Any) -> Iterator[str]:
    """A setting as an argument in code; none where it is not set, or no plain value."""
    if callable(value):
        value = getattr(value, "__name__", type(value).__name__)
    if isinstance(value, (bool, int, float)):
        yield f"{name}={value}"
    elif isinstance(value, str) and value != "linear":
        yield f'{name}="{value}"'
