"""Finding ops in a step: by text, by health, in the order of execution. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

from nanreplay.explore.health import HEALTHS
from nanreplay.explore.step import Op, StepView

Direction: TypeAlias = Literal[1, -1]
Test: TypeAlias = Callable[[Op], bool]
_SIZE = re.compile(r"([<>])\s*([-+\d.e]+)", re.IGNORECASE)


def matcher(text: str) -> Test:
    """Return what tells whether an op fits a query.

    All words of the query must fit: a part of the op's type, name, layer, phase or source line, in any case; `nan`, `inf`,
    `contained`, `finite`, `bad` (all but finite) or `origin` after `is:`; `>1e4` or `<1e-6` for its largest finite absolute
    value; `step:` is not among them, since a view is of one step.
    """
    tests = [_test(word) for word in text.split()]
    return lambda op: all(test(op) for test in tests)


def search(ops: Iterable[Op], text: str) -> tuple[Op, ...]:
    """Return the ops that fit a query, in order; see `matcher`."""
    fits = matcher(text)
    return tuple(op for op in ops if fits(op))


def neighbour(ops: Sequence[Op], serial: int, direction: Direction, fits: Test = lambda op: True) -> Op | None:
    """Return the next or the previous op, in the order of execution, that fits; None at the end."""
    before = [op for op in ops if op.serial < serial] if direction < 0 else []
    after = (op for op in ops if op.serial > serial)
    return next((op for op in (reversed(before) if direction < 0 else after) if fits(op)), None)


def is_bad(op: Op) -> bool:
    """Whether an op gave something non-finite that matters."""
    return op.health in ("inf", "nan")


def next_origin(view: StepView, serial: int | None) -> Op | None:
    """Return the origin after the given one, starting over at the end; None when no op is one."""
    serials = [value.serial for value in view.origins if value.serial >= 0]
    if not serials:
        return None
    following = serials.index(serial) + 1 if serial in serials else 0
    return view.op(serials[following % len(serials)])


def _test(word: str) -> Test:
    key, _, value = word.lower().partition(":")
    if key == "is" and value in HEALTHS:
        return lambda op: op.health == value
    if key == "is" and value == "bad":
        return lambda op: op.health != "finite"
    if key == "is" and value == "origin":
        return lambda op: op.is_origin
    size = _SIZE.fullmatch(word)
    if size is not None:
        return _size_test(size[1], size[2])
    wanted = word.lower()
    return lambda op: wanted in _text(op)


def _size_test(sign: str, text: str) -> Test:
    try:
        limit = float(text)
    except ValueError:
        return lambda op: False

    def fits(op: Op) -> bool:
        sizes = [stat.absmax for stat in op.outputs if stat.absmax is not None]
        return bool(sizes) and (max(sizes) > limit if sign == ">" else max(sizes) < limit)

    return fits


def _text(op: Op) -> str:
    code = "" if op.source is None else f"{op.source.file}:{op.source.line} {op.source.code or ''}"
    return f"{op.type} {op.name} {op.layer_path} {op.phase} {code}".lower()
