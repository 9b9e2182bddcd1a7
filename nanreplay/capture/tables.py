"""Tables of a capture between records, JSON and pandas."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
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

# Dataclasses from JSON, every field held to its type: what reads a capture later need not doubt
# what is in it.

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
        return (
            None
            if value is None
            else typed(next(each for each in arguments if each is not type(None)), value, what)
        )
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        if isinstance(value, list):
            if arguments[0] is str and all(
                type(each) is str for each in value
            ):  # long tables are made of these
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
    return tuple(
        (each.name, hints[each.name], each.default is MISSING and each.default_factory is MISSING)
        for each in fields(kind)
    )


def _shown(value: Any) -> str:
    text = (
        repr(value)
        if not isinstance(value, int) or abs(value) < _LARGEST_INTEGER
        else "a huge number"
    )
    return text if len(text) <= 40 else f"{text[:37]}..."


# --- capture.tables

_TEXTS = ("function", "name", "type", "layer_path", "phase", "where", "forward", "forward_function")


def ops_table(ops: Sequence[OpInfo]) -> dict[str, Any]:
    """Columns of the ops, each text once in a dictionary of its column."""
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
        replicas = (
            typed(tuple[int, ...], table["replica"], "replica")
            if "replica" in table
            else (-1,) * len(stacks)
        )
        rows = zip(*(columns[name] for name in _TEXTS), stacks, replicas, strict=True)
        return tuple(
            OpInfo(
                function, name, kind, layer, phase, where, stack, forward, forward_function, replica
            )
            for function, name, kind, layer, phase, where, forward, forward_function, stack, replica in rows
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise FormatError(f"the table of ops is damaged ({error})") from error


def _column(column: Any, name: str) -> list[str]:
    words = typed(tuple[str, ...], column["words"], name)
    return [words[index] for index in typed(tuple[int, ...], column["index"], name)]


def ops_frame(ops: Sequence[OpInfo]) -> pd.DataFrame:
    """The ops as a DataFrame, one row an op."""
    import pandas as pd

    return pd.DataFrame(
        {each.name: [getattr(op, each.name) for op in ops] for each in fields(OpInfo)}
    )


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
    named = [
        *(spec.variable for spec in signature.captures),
        *(spec.variable for spec in signature.gradients),
        signature.learning_rate,
    ]
    if any(index is not None and not 0 <= index < n_variables for index in named):
        raise FormatError("its signature names a variable that is not there")
    held = len(program.constants)
    if any(
        spec.constant is not None and not 0 <= spec.constant < held for spec in signature.captures
    ):
        raise FormatError("its signature names a constant that is not there")
    if any(spec.leaf < 0 for spec in (*signature.inputs, *signature.fed)):
        raise FormatError("its signature names an array of the batch that is not there")


def check_batch(batch: BatchRecord, signature: Signature) -> None:
    """Check that a batch holds the arrays that its program is fed with.

    Raises:
        FormatError: It does not.
    """
    wanted = max((spec.leaf + 1 for spec in signature.inputs), default=0)
    if wanted > len(batch.leaves):
        raise FormatError(
            f"The capture is damaged: its program takes {wanted} arrays of a batch that holds {len(batch.leaves)}."
        )


def check_columns(columns: Mapping[str, Any]) -> None:
    """Check that columns of a timeline are columns of numbers, of one length, with the steps among them.

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
    if any(
        matrix.shape != wanted or matrix.dtype.kind not in "biuf"
        for matrix in timeline.matrices.values()
    ):
        raise FormatError("its matrices do not fit its steps and variables")
    if any(not 0 <= index < n_variables for index in timeline.variables):
        raise FormatError("it names a variable that is not there")
