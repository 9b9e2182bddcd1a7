"""From the flat arrays of a recorded batch to what a training step takes."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from nanreplay.errors import ModelError, ReplayError
from nanreplay.records import ArrayLike

# Finding the function that makes today's model, and calling it.

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
Factory: TypeAlias = Callable[[], Any]
"""Returns a compiled Keras model, or (model, optimizer, step) of a training loop."""


@dataclass(frozen=True, slots=True)
class Training:
    """What today's code trains."""

    name: str
    """What the factory is called, for messages."""
    model: Any
    """A Keras model; in a loop, whatever holds the variables (or a nest of such), or None."""
    optimizer: Any = None
    step: Callable[..., Any] | None = None
    """The loop's step; None for `model.fit`."""


def load_factory(given: str | Factory) -> tuple[str, Factory]:
    """Return the name of a factory, and the factory.

    Args:
        given: `package.module:function` or `path/to/file.py:function`, found from the current folder; or the function.

    Raises:
        ModelError: There is no such module or function.
    """
    if not isinstance(given, str):
        if not callable(given):
            raise ModelError(
                f"Expected a function that returns a model. Received: {type(given).__name__}"
            )
        return getattr(given, "__qualname__", type(given).__name__), given
    module_name, colon, attribute = given.rpartition(":")
    if not colon or not module_name or not attribute:
        raise ModelError(f"Expected MODULE:FUNCTION or FILE.py:FUNCTION. Received: {given}")
    found: Any = _module(module_name)
    for name in attribute.split("."):
        if not hasattr(found, name):
            close = difflib.get_close_matches(name, dir(found), 1)
            raise ModelError(
                f"{module_name} has no {attribute!r}.",
                hint=f"did you mean {close[0]!r}?" if close else None,
            )
        found = getattr(found, name)
    if not callable(found):
        raise ModelError(
            f"{given} is no function that returns a model, but of type {type(found).__name__}."
        )
    return given, found


def _module(name: str) -> ModuleType:
    """A module, found from the current folder as pytest and uvicorn do."""
    is_file = name.endswith(".py")
    if is_file and not Path(name).is_file():
        raise ModelError(f"{name}: no such file.")
    folder = str(Path(name).resolve().parent) if is_file else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _from_file(Path(name).resolve()) if is_file else importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (
            error.name is not None
            and not is_file
            and (name == error.name or name.startswith(f"{error.name}."))
        ):
            raise ModelError(
                f"There is no module {error.name!r} in {folder} or among the installed ones."
            ) from error
        raise raised(f"{name} cannot be imported", error) from error
    except (Exception, SystemExit) as error:
        raise raised(f"{name} cannot be imported", error) from error


def _from_file(path: Path) -> ModuleType:
    for module in list(sys.modules.values()):
        if (
            getattr(module, "__file__", None) == str(path)
            and getattr(module, "__name__", "") != "__main__"
        ):
            return module
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_{abs(hash(path))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} cannot be imported.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def make_training(name: str, factory: Factory) -> Training:
    """Call the factory.

    Raises:
        ModelError: It raised, or returned something else than a compiled model or (model, optimizer, step).
    """
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise raised(f"{name} cannot make the model", error) from error
    if isinstance(made, (tuple, list)):
        if len(made) != 3 or not callable(made[2]):
            kinds = ", ".join(type(each).__name__ for each in made)
            raise ModelError(
                f"{name} returned ({kinds}). Expected a compiled Keras model, or (model, optimizer, step) of a loop."
            )
        return Training(name, *made)
    return Training(name, made)


def raised(what: str, error: BaseException) -> ModelError:
    """An error of the user's code in one line, with the place where it was raised."""
    from nanreplay.program.op_facts import is_user_file

    own = [
        frame for frame in traceback.extract_tb(error.__traceback__) if is_user_file(frame.filename)
    ]
    place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return ModelError(f"{what}: {type(error).__name__}{place}: {_said(str(error))}".rstrip(": "))


def _said(message: str) -> str:
    """The line that says why; Keras puts the layer's call before it, and colours it."""
    lines = [line for line in _COLOUR.sub("", message).splitlines() if line.strip()] or [""]
    return (
        lines[1]
        if len(lines) > 1 and lines[0].startswith("Exception encountered when calling")
        else lines[0]
    )


# --- today.structure

_Tree = dict[str, Any]
_MADE_OUTSIDE = "made outside TensorFlow"
"""Begins the paths of arrays that an eager step made by itself, and that are no part of its batch."""


def batch_of(paths: Sequence[str], leaves: Sequence[ArrayLike]) -> Any:
    """Nest the arrays as their paths (`0/ids`, `1`) have it: names make dicts, numbers tuples, with None in the gaps.

    Raises:
        ReplayError: The paths contradict each other.
    """
    tensors = {
        path: as_tensor(leaf)
        for path, leaf in zip(paths, leaves, strict=True)
        if not path.startswith(_MADE_OUTSIDE)
    }
    if list(tensors) == [""]:
        return tensors[""]
    tree: _Tree = {}
    for path, tensor in tensors.items():
        *inner, last = path.split("/")
        node = tree
        for name in inner:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise _unclear(paths)
        if last in node or not last:
            raise _unclear(paths)
        node[last] = tensor
    return _nested(tree)


def as_tensor(leaf: ArrayLike) -> Any:
    """A recorded array as a tensor."""
    array = np.asarray(leaf)
    return tf.convert_to_tensor(array, tf.string if array.dtype.kind in "OSU" else None)


def _unclear(paths: Sequence[str]) -> ReplayError:
    return ReplayError(
        f"The structure of the recorded batch cannot be rebuilt from its paths: {', '.join(paths)}."
    )


def _nested(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    inner = {name: _nested(each) for name, each in tree.items()}
    if list(inner) == ["RaggedTensor"]:
        values, splits = inner["RaggedTensor"]
        return tf.RaggedTensor.from_row_splits(values, splits, validate=False)
    if list(inner) == ["SparseTensor"]:
        return tf.SparseTensor(*inner["SparseTensor"])
    if all(name.isdigit() for name in inner):
        return tuple(inner.get(str(index)) for index in range(max(map(int, inner)) + 1))
    return inner


def arguments_for(
    step: Callable[..., Any], batch: Any
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """How a loop's step is called with a recorded batch: positional and named arguments.

    A capture keeps arrays by their place: `0`, `1` are two arguments, or one that is a pair; the signature of today's
    step tells which. Arguments that were no arrays are not in a capture.

    Raises:
        ReplayError: The step takes other arguments.
    """
    signature = inspect.signature(getattr(step, "python_function", step))
    candidates: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []
    if isinstance(batch, tuple):
        if len(batch) == 2 and isinstance(batch[1], dict) and isinstance(batch[0], tuple):
            candidates.append((batch[0], batch[1]))
        candidates.append((batch, {}))
    if (
        isinstance(batch, tuple)
        and len(batch) == 2
        and batch[0] is None
        and isinstance(batch[1], dict)
    ):
        candidates.insert(0, ((), batch[1]))
    candidates.append(((batch,), {}))
    for args, kwargs in candidates:
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            continue
        if any(arg is None for arg in args):
            raise ReplayError(
                f"Argument {args.index(None)} of the recorded step was no array, and is not in the capture; "
                "today's step cannot be called without it."
            )
        return args, kwargs
    count = len(batch) if isinstance(batch, tuple) else 1
    raise ReplayError(
        f"Today's step takes {signature}, but the capture holds {count} argument{'' if count == 1 else 's'} that are arrays; "
        "others are not recorded."
    )
