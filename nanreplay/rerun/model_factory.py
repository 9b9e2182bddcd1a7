"""What the user's current code trains: finding and calling its factory, and calling its step.

`replay_with`, `diff_with_code` and `export_test` take a factory: a function that returns a compiled
Keras model or the parts of a training loop. The recorded batch is a flat list of arrays; here it is
nested again, as the step takes it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from nanreplay.errors import ModelError, ReplayError
from nanreplay.records import MADE_BEFORE, MADE_OUTSIDE, ArrayLike

Factory: TypeAlias = Callable[[], Any]
"""Returns a compiled Keras model, or (model, optimizer, step) of a training loop."""
Arguments: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional and named arguments of a call."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Training:
    """What the current code trains."""

    name: str
    """What the factory is called, for messages."""
    model: Any
    """A Keras model; in a loop, whatever holds the variables (or a nest of such), or None."""
    optimizer: Any = None
    step: Callable[..., Any] | None = None
    """The loop's step; None for `model.fit`."""


def load_factory(factory: str | Factory) -> tuple[str, Factory]:
    """Return the name of a factory, and the factory.

    Args:
        factory: `package.module:function` or `path/to/file.py:function`, found from the current
            folder; or the function.

    Raises:
        ModelError: There is no such module or function.
    """
    if not isinstance(factory, str):
        kind = type(factory).__name__
        if not callable(factory):
            raise ModelError(f"Expected a function that returns a model. Received: {kind}")
        return getattr(factory, "__qualname__", kind), factory
    module_name, colon, attribute = factory.rpartition(":")
    if not colon or not module_name or not attribute:
        raise ModelError(f"Expected MODULE:FUNCTION or FILE.py:FUNCTION. Received: {factory}")
    function: Any = _imported(module_name)
    for name in attribute.split("."):
        if not hasattr(function, name):
            similar = difflib.get_close_matches(name, dir(function), 1)
            hint = f"did you mean {similar[0]!r}?" if similar else None
            raise ModelError(f"{module_name} has no {attribute!r}.", hint=hint)
        function = getattr(function, name)
    if not callable(function):
        kind = type(function).__name__
        raise ModelError(f"{factory} is no function that returns a model, but of type {kind}.")
    return factory, function


def _imported(name: str) -> ModuleType:
    """A module, found from the current folder as pytest and uvicorn do."""
    is_file = name.endswith(".py")
    if is_file and not Path(name).is_file():
        raise ModelError(f"{name}: no such file.")
    folder = str(Path(name).resolve().parent) if is_file else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _imported_file(Path(name).resolve()) if is_file else importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name
        is_missing_itself = missing is not None and f"{name}.".startswith(f"{missing}.")
        if is_missing_itself and not is_file:
            raise ModelError(
                f"There is no module {missing!r} in {folder} or among the installed ones."
            ) from error
        raise raised(f"{name} cannot be imported", error) from error
    except (Exception, SystemExit) as error:
        raise raised(f"{name} cannot be imported", error) from error


def _imported_file(path: Path) -> ModuleType:
    """The module of a file: the one that is imported already, else a new one.

    A second copy would have classes of its own, with which `isinstance` fails. `__main__` does not
    count: the program that runs may be half way through its file.
    """
    for module in list(sys.modules.values()):
        is_from_file = getattr(module, "__file__", None) == str(path)
        if is_from_file and getattr(module, "__name__", "") != "__main__":
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


_EXPECTED = "Expected a compiled Keras model, or (model, optimizer, step) of a loop."


def make_training(name: str, factory: Factory) -> Training:
    """Call the factory.

    Raises:
        ModelError: It raised, or returned something else than a compiled model or (model,
            optimizer, step).
    """
    try:
        parts = factory()
    except (Exception, SystemExit) as error:
        raise raised(f"{name} cannot make the model", error) from error
    if not isinstance(parts, (tuple, list)):
        if not hasattr(parts, "train_step"):
            raise ModelError(f"{name} returned {type(parts).__name__}. {_EXPECTED}")
        return Training(name, parts)
    if len(parts) != 3 or not callable(parts[2]):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise ModelError(f"{name} returned ({kinds}). {_EXPECTED}")
    return Training(name, *parts)


def raised(problem: str, error: BaseException) -> ModelError:
    """An error of the user's code in one line, with the place where it was raised."""
    from nanreplay.program.op_facts import is_user_file

    frames = traceback.extract_tb(error.__traceback__)
    own_frames = []
    for frame in frames:
        if is_user_file(frame.filename, frame.name):
            own_frames.append(frame)
    place = ""
    if own_frames:
        place = f" at {Path(own_frames[-1].filename).name}:{own_frames[-1].lineno}"
    reason = _first_reason(str(error))
    return ModelError(f"{problem}: {type(error).__name__}{place}: {reason}".rstrip(": "))


def _first_reason(message: str) -> str:
    """The line that says why; Keras puts the layer's call before it, and colours it."""
    lines = [line for line in _COLOUR.sub("", message).splitlines() if line.strip()] or [""]
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        return lines[1]
    return lines[0]


# From the flat arrays of a recorded batch to the arguments of a training step.


def batch_of(paths: Sequence[str], leaves: Sequence[ArrayLike]) -> Any:
    """Nest the arrays as their paths (`0/ids`, `1`) have it.

    Names make dicts, numbers make tuples, with None in the gaps: `0/ids`, `0/mask` and `2` are
    `({"ids": ..., "mask": ...}, None, ...)`.

    Raises:
        ReplayError: The paths contradict each other.
    """
    tensors = {}
    for path, leaf in zip(paths, leaves, strict=True):
        if not path.startswith((MADE_OUTSIDE, MADE_BEFORE)):
            tensors[path] = as_tensor(leaf)
    if list(tensors) == [""]:
        return tensors[""]
    tree: dict[str, Any] = {}
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
    children = {name: _nested(child) for name, child in tree.items()}
    # The recorder puts the class of a composite tensor into the paths of its components.
    if list(children) == ["RaggedTensor"]:
        values, splits = children["RaggedTensor"]
        return tf.RaggedTensor.from_row_splits(values, splits, validate=False)
    if list(children) == ["SparseTensor"]:
        return tf.SparseTensor(*children["SparseTensor"])
    if all(name.isdigit() for name in children):
        length = max(map(int, children)) + 1
        return tuple(children.get(str(index)) for index in range(length))
    return children


def arguments_for(step: Callable[..., Any], batch: Any) -> Arguments:
    """How a loop's step is called with a recorded batch.

    A capture keeps arrays by their place: `0`, `1` are two arguments, or one that is a pair; the
    signature of the current step tells which. Arguments that were no arrays are not in a capture.

    Raises:
        ReplayError: The step takes other arguments.
    """
    # A tf.function has the signature of (*args, **kwargs); the function under it has the user's.
    signature = inspect.signature(getattr(step, "python_function", step))
    for args, kwargs in _possible_arguments(batch):
        try:
            signature.bind(*args, **kwargs)
        except TypeError:
            continue
        if any(arg is None for arg in args):
            raise ReplayError(
                f"Argument {args.index(None)} of the recorded step was no array, and is not in the "
                "capture; today's step cannot be called without it."
            )
        return args, kwargs
    count = len(batch) if isinstance(batch, tuple) else 1
    raise ReplayError(
        f"Today's step takes {signature}, but the capture holds {count} "
        f"argument{'' if count == 1 else 's'} that are arrays; others are not recorded."
    )


def _possible_arguments(batch: Any) -> Iterator[Arguments]:
    """Ways of calling a step with a batch, those that say most of the structure first.

    A step that was called with named arguments has a batch of two: positional ones (None when there
    were none), and a dict. A Keras batch of inputs and a dict of labels looks the same.
    """
    if isinstance(batch, tuple):
        if len(batch) == 2 and isinstance(batch[1], dict):
            positional, named = batch
            if positional is None:
                yield (), named
            elif isinstance(positional, tuple):
                yield positional, named
        yield batch, {}
    yield (batch,), {}
