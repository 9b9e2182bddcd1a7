"""Tables of a capture between records, JSON and pandas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from nanreplay.errors import FormatError
from nanreplay.records import CaptureSpec, GradientSpec, Incident, InputSpec, OpInfo, Signature, Timeline, Trigger

if TYPE_CHECKING:
    import pandas as pd

_TEXTS = ("function", "name", "type", "layer_path", "phase", "where", "forward", "forward_function")


def ops_table(ops: Sequence[OpInfo]) -> dict[str, Any]:
    """Columns of the ops, each text once in a dictionary of its column."""
    table: dict[str, Any] = {"stack": [op.stack for op in ops]}
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
        columns = {name: [table[name]["words"][index] for index in table[name]["index"]] for name in _TEXTS}
        rows = zip(*(columns[name] for name in _TEXTS), (int(stack) for stack in table["stack"]), strict=True)
        return tuple(
            OpInfo(function, name, kind, layer, phase, where, stack, forward, forward_function)
            for function, name, kind, layer, phase, where, forward, forward_function, stack in rows
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise FormatError(f"the table of ops is damaged ({error})") from error


def ops_frame(ops: Sequence[OpInfo]) -> pd.DataFrame:
    """The ops as a DataFrame, one row an op."""
    import pandas as pd

    return pd.DataFrame({each.name: [getattr(op, each.name) for op in ops] for each in fields(OpInfo)})


def signature_from_json(value: Any) -> Signature:
    """The signature from its JSON.

    Raises:
        FormatError: It is damaged.
    """
    try:
        plain = dict(value)
        for name in ("inputs", "fed"):  # an older file has no `fed`
            plain[name] = tuple(
                InputSpec(**{**spec, "shape": None if spec["shape"] is None else tuple(spec["shape"])}) for spec in plain.get(name, ())
            )
        plain["captures"] = tuple(CaptureSpec(**spec) for spec in plain["captures"])
        plain["gradients"] = tuple(GradientSpec(**spec) for spec in plain["gradients"])
        for name in ("outputs", "output_names", "control_outputs", "losses", "watch_layout"):
            plain[name] = tuple(plain[name])
        return Signature(**plain)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"a program's signature is damaged ({error})") from error


def incident_from_json(value: Any) -> Incident:
    """The incident from its JSON."""
    trigger = Trigger(**value.pop("trigger"))
    return Incident(trigger=trigger, **{**value, "step": int(value["step"]), "notes": tuple(map(str, value["notes"]))})


def check_timeline(timeline: Timeline, n_variables: int) -> None:
    """Check that columns, matrices and variables fit together.

    Raises:
        FormatError: They do not.
    """
    rows = {len(column) for column in timeline.columns.values()}
    shapes = {matrix.shape for matrix in timeline.matrices.values()}
    wanted = {(next(iter(rows), 0), len(timeline.variables))}
    if len(rows) > 1 or shapes - wanted or "step" not in timeline.columns:
        raise FormatError("its columns have different lengths")
    if any(not 0 <= index < n_variables for index in timeline.variables):
        raise FormatError("it names a variable that is not there")
