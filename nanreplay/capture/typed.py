"""Dataclasses from JSON, every field held to its type: what reads a capture later need not doubt what is in it."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from nanreplay.errors import FormatError

T = TypeVar("T")
_LARGEST_INTEGER = 2**64
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def build(kind: type[T], value: Any) -> T:
    """Make a dataclass of a JSON object; keys that it does not know are ignored.

    Raises:
        FormatError: A field is missing, or is not of its type.
    """
    if not isinstance(value, dict):
        raise FormatError(f"expected an object for {kind.__name__}, found {_shown(value)}")
    given = {}
    for name, hint, needed in _fields(cast("Any", kind)):
        if name in value:
            given[name] = typed(hint, value[name], f"{kind.__name__}.{name}")
        elif needed:
            raise FormatError(f"{kind.__name__} has no {name!r}")
    return kind(**given)


def typed(hint: Any, value: Any, what: str) -> Any:
    """A JSON value as the type that it is to be: lists become tuples, objects dataclasses.

    Raises:
        FormatError: It is of another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else typed(next(each for each in arguments if each is not type(None)), value, what)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        if isinstance(value, list):
            if arguments[0] is str and all(type(each) is str for each in value):  # long tables are made of these
                return tuple(map(readable, value))
            return tuple(typed(arguments[0], each, what) for each in value)
    elif is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_INTEGER:
            return value
    elif hint is str and isinstance(value, str):
        return readable(value)
    elif hint is bool and isinstance(value, bool):
        return value
    raise FormatError(f"unexpected {_shown(value)} at {what}")


def readable(text: str) -> str:
    """A text that can be printed: no control characters, which a terminal obeys, and no halves of characters, which no file takes."""
    return text if text.isprintable() else _UNPRINTABLE.sub("?", text)


@cache
def _fields(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type, and whether it must be there, of each field."""
    hints = get_type_hints(kind)
    return tuple((each.name, hints[each.name], each.default is MISSING and each.default_factory is MISSING) for each in fields(kind))


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < _LARGEST_INTEGER else "a huge number"
    return text if len(text) <= 40 else f"{text[:37]}..."
