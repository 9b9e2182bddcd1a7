"""Tables of a capture between records, JSON and pandas.

A file may come from anybody, so every field of a table is checked against the type that its
dataclass declares, and every index against what it points into. Code that gets records from a
capture need not doubt them.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from nanreplay.capture.format import DTYPES
from nanreplay.errors import FormatError
from nanreplay.records import (
    BatchRecord,
    Incident,
    InputSpec,
    OpInfo,
    ProgramRecord,
    Signature,
    Timeline,
    VariableInfo,
)

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
# JSON has integers of any size, and Python takes very long to print one of a million digits.
_LARGEST_INTEGER = 2**64
NONFINITE = ("nan", "inf", "-inf")
"""How reports write what JSON has no numbers for."""
# Control characters but tab and newline, which terminals obey, and lone surrogates, which no file
# can be written with.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


# Dataclasses from JSON.


def build(kind: type[T], value: Any) -> T:
    """Make a dataclass of a JSON object; keys that it does not know are ignored.

    Raises:
        FormatError: A field is missing, or is not of its type.
    """
    if not isinstance(value, dict):
        raise FormatError(f"expected an object for {kind.__name__}, found {_excerpt(value)}")
    arguments = {}
    for name, hint, is_needed in _typed_fields(cast("Any", kind)):
        if name in value:
            arguments[name] = typed(hint, value[name], f"{kind.__name__}.{name}")
        elif is_needed:
            raise FormatError(f"{kind.__name__} has no {name!r}")
    return kind(**arguments)


def typed(hint: Any, value: Any, what: str) -> Any:
    """A JSON value as the type that it is to be: lists become tuples, objects dataclasses.

    Args:
        hint: The type, as dataclasses declare fields: `int`, `tuple[str, ...]`, `Frame | None`.
        value: What `json.loads` gave.
        what: Completes "unexpected 3 at ...".

    Raises:
        FormatError: It is of another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        if value is None and len(inner) < len(arguments):
            return None
        # X | None has one inner type; the only other union is that of numbers and texts
        return typed(inner[0], value, what) if len(inner) == 1 else _number(value, what)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        is_open = origin is not tuple or arguments[-1] is Ellipsis
        if isinstance(value, list) and (is_open or len(value) == len(arguments)):
            return _typed_elements(arguments[0], value, what)
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        if isinstance(value, dict):
            return _readable_tree(value)
    elif is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value)
    elif hint is float and not isinstance(value, str):
        number = _number(value, what)
        return number if isinstance(number, float) else float(number)
    elif hint is float and value in NONFINITE:
        return float(value)
    elif _is_plain(hint, value):
        return readable(value) if hint is str else value
    raise FormatError(f"unexpected {_excerpt(value)} at {what}")


def _number(value: Any, what: str) -> float | int | bool | str:
    """A number, or a text that stands for one: `nan`, `(1+2j)`."""
    if isinstance(value, str):
        return float(value) if value in NONFINITE else readable(value)
    if isinstance(value, (float, bool)) or _is_plain(int, value):
        number: float | int | bool = value
        return number
    raise FormatError(f"unexpected {_excerpt(value)} at {what}")


def _readable_tree(value: Any) -> Any:
    """JSON of no declared form, with texts that can be printed."""
    if isinstance(value, dict):
        return {readable(str(key)): _readable_tree(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return list(map(_readable_tree, value))
    return readable(value) if isinstance(value, str) else value


def _typed_elements(hint: Any, values: list[Any], what: str) -> tuple[Any, ...]:
    # the long tables of a capture are lists of texts and of integers: passes in C instead of a
    # call for each
    kinds = set(map(type, values))
    if hint is str and kinds == {str}:
        return tuple(map(readable, values))
    if hint is int and kinds == {int} and max(map(abs, values)) < _LARGEST_INTEGER:
        return tuple(values)
    return tuple(typed(hint, value, what) for value in values)


def _is_plain(hint: Any, value: Any) -> bool:
    if hint is int:  # Python's bool is an int, JSON's is not
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and abs(value) < _LARGEST_INTEGER
    return (hint is str or hint is bool) and isinstance(value, hint)


def readable(text: str) -> str:
    """A text that can be printed and written to a file: other characters become `?`."""
    return text if text.isprintable() else _UNPRINTABLE.sub("?", text)


@cache
def _typed_fields(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type, and whether it must be there, of each field."""
    hints = get_type_hints(kind)
    return tuple((field.name, hints[field.name], _is_required(field)) for field in fields(kind))


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _excerpt(value: Any) -> str:
    """A value for an error message, in at most 40 characters."""
    if isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# The tables of a capture.

_TEXTS = ("function", "name", "type", "layer_path", "phase", "where", "forward", "forward_function")
"""Columns of the table of ops that are texts."""


def ops_table(ops: Sequence[OpInfo]) -> dict[str, Any]:
    """Columns of the ops, each text once in a dictionary of its column.

    A program has thousands of ops and few types, layers and phases: `["MatMul", "Add", "MatMul"]`
    is written as `{"words": ["MatMul", "Add"], "index": [0, 1, 0]}`.
    """
    table: dict[str, Any] = {"stack": [op.stack for op in ops]}
    if any(op.replica >= 0 for op in ops):
        table["replica"] = [op.replica for op in ops]
    for name in _TEXTS:
        values = [getattr(op, name) for op in ops]
        words = list(dict.fromkeys(values))
        index = {word: position for position, word in enumerate(words)}
        table[name] = {"words": words, "index": [index[value] for value in values]}
    return table


def ops_from_table(table: Any) -> tuple[OpInfo, ...]:
    """The ops of a table that `ops_table` made.

    Raises:
        FormatError: The table is damaged.
    """
    try:
        columns = {name: _column(table[name], name) for name in _TEXTS}
        stacks = typed(tuple[int, ...], table["stack"], "stack")
        replicas = (-1,) * len(stacks)
        if "replica" in table:
            replicas = typed(tuple[int, ...], table["replica"], "replica")
        rows = zip(  # in the order of OpInfo's fields
            columns["function"], columns["name"], columns["type"], columns["layer_path"],
            columns["phase"], columns["where"], stacks, columns["forward"],
            columns["forward_function"], replicas, strict=True,
        )  # fmt: skip
        return tuple(OpInfo(*row) for row in rows)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise FormatError(f"the table of ops is damaged ({error})") from error


def _column(column: Any, name: str) -> list[str]:
    words = typed(tuple[str, ...], column["words"], name)
    return [words[index] for index in typed(tuple[int, ...], column["index"], name)]


def ops_frame(ops: Sequence[OpInfo]) -> pd.DataFrame:
    """The ops as a DataFrame, one row an op."""
    import pandas as pd

    columns = {}
    for field in fields(OpInfo):
        columns[field.name] = [getattr(op, field.name) for op in ops]
    return pd.DataFrame(columns)


def signature_from_json(value: Any) -> Signature:
    """The signature from its JSON.

    Raises:
        FormatError: It is damaged.
    """
    signature = build(Signature, value)
    _check_types((*signature.inputs, *signature.fed))
    return signature


def variables_from_json(value: Any) -> tuple[VariableInfo, ...]:
    """The table of variables from its JSON.

    Raises:
        FormatError: It is damaged.
    """
    infos: tuple[VariableInfo, ...] = typed(
        tuple[VariableInfo, ...], value, "the table of variables"
    )
    _check_types(infos)
    return infos


def _check_types(specs: Sequence[VariableInfo] | Sequence[InputSpec]) -> None:
    for spec in specs:
        if spec.dtype not in DTYPES:
            raise FormatError(f"unexpected type {spec.dtype[:40]!r} of {spec.path[:100]!r}")
        if any(size is not None and size < 0 for size in spec.shape or ()):
            raise FormatError(f"unexpected shape {spec.shape} of {spec.path[:100]!r}")


def incident_from_json(value: Any) -> Incident:
    """The incident from its JSON."""
    incident = build(Incident, value)
    if incident.step < 0:
        raise FormatError(f"unexpected step {incident.step}")
    return incident


def check_references(program: ProgramRecord, n_variables: int) -> None:
    """Check that the signature of a program names variables and constants that are there.

    Raises:
        FormatError: It does not.
    """
    signature = program.signature
    variables = [
        *(spec.variable for spec in signature.captures),
        *(spec.variable for spec in signature.gradients),
        signature.learning_rate,
    ]
    if not _all_below(variables, n_variables):
        raise FormatError("its signature names a variable that is not there")
    constants = [spec.constant for spec in signature.captures]
    if not _all_below(constants, len(program.constants)):
        raise FormatError("its signature names a constant that is not there")
    if any(spec.leaf < 0 for spec in (*signature.inputs, *signature.fed)):
        raise FormatError("its signature names an array of the batch that is not there")


def _all_below(indices: Sequence[int | None], count: int) -> bool:
    return all(index is None or 0 <= index < count for index in indices)


def check_batch(batch: BatchRecord, signature: Signature) -> None:
    """Check that a batch holds the arrays that its program is fed with.

    Raises:
        FormatError: It does not.
    """
    wanted = max((spec.leaf + 1 for spec in signature.inputs), default=0)
    if wanted > len(batch.leaves):
        raise FormatError(
            f"The capture is damaged: its program takes {wanted} arrays of a batch that holds "
            f"{len(batch.leaves)}."
        )


def check_columns(columns: Mapping[str, Any]) -> None:
    """Check that a timeline has columns of numbers of one length, with the steps among them.

    Raises:
        FormatError: They are not.
    """
    if "step" not in columns or columns["step"].dtype.kind not in "iu":
        raise FormatError("it has no column of steps")
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in "biuf":
            raise FormatError(f"its {name} is no column of numbers")
    if len({len(column) for column in columns.values()}) > 1:
        raise FormatError("its columns have different lengths")


def check_timeline(timeline: Timeline, n_variables: int) -> None:
    """Check that columns, matrices and variables fit together.

    Raises:
        FormatError: They do not.
    """
    check_columns(timeline.columns)
    wanted = (len(timeline.columns["step"]), len(timeline.variables))
    for matrix in timeline.matrices.values():
        if matrix.shape != wanted or matrix.dtype.kind not in "biuf":
            raise FormatError("its matrices do not fit its steps and variables")
    if not _all_below(timeline.variables, n_variables):
        raise FormatError("it names a variable that is not there")
