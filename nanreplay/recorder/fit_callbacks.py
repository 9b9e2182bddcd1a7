"""Seeing `fit` end by an exception of another callback: Keras calls `on_train_end` only when all went well."""

from __future__ import annotations

import sys
from typing import Any

import keras

from nanreplay.recorder.ending import Ending

_HOOKS = [
    f"on_{what}_{when}" for what in ("epoch", "train_batch", "test", "test_batch") for when in ("begin", "end")
]  # fmt: skip


def callbacks_of_fit() -> Any:
    """The `CallbackList` that is calling now, or None."""
    frame = sys._getframe(1)
    while frame is not None and not isinstance(frame.f_locals.get("self"), keras.callbacks.CallbackList):
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else frame.f_locals["self"]


def watch_callbacks(callbacks: Any, ending: Ending) -> None:
    """Have `ending` told of exceptions that come out of `callbacks`; the list belongs to this one `fit`."""
    if type(callbacks) is keras.callbacks.CallbackList:
        callbacks.__class__ = WatchedCallbackList
        callbacks.nanreplay_endings = []
    if isinstance(callbacks, WatchedCallbackList):
        callbacks.nanreplay_endings.append(ending)


class WatchedCallbackList(keras.callbacks.CallbackList):
    """A `CallbackList` whose exceptions are noted on their way."""

    nanreplay_endings: list[Ending]


def _watched(name: str) -> Any:
    def hook(self: WatchedCallbackList, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(keras.callbacks.CallbackList, name)(self, *args, **kwargs)
        except BaseException as error:
            for ending in self.nanreplay_endings:
                ending.ended_by(error)
            raise

    return hook


for _name in _HOOKS:
    setattr(WatchedCallbackList, _name, _watched(_name))
