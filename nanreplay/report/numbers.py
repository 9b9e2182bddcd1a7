"""Numbers, steps, sizes and triggers as people and readers of JSON get them.

Used by everything that prints: reports, commands, the terminal interface.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nanreplay.errors import few_digits, without_node_names
from nanreplay.records import Trigger


def jsonable(value: Any) -> Any:
    """A value as JSON holds it.

    Tuples become lists, and NaN and infinities, which JSON does not have, the texts "nan", "inf"
    and "-inf".
    """
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # a numpy scalar or array
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def readable_number(value: Any) -> str:
    """A number in few digits: `0.0`, `1.5e+20`, `NaN`, `inf`."""
    if value is None:
        return "?"
    if isinstance(value, str):
        return {"nan": "NaN"}.get(value, value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    number = float(value)
    if math.isnan(number):
        return "NaN"
    text = few_digits(number)
    is_whole = not math.isinf(number) and "." not in text and "e" not in text
    return f"{text}.0" if is_whole else text


def readable_ulp(ulp: int | None) -> str:
    """How far a number is from its recording: `3 ulp off`.

    2^62 stands for a finite number against a non-finite one, which have no distance.
    """
    if ulp is None:
        return "not bit for bit"
    return "finite against non-finite" if ulp >= 2**62 else f"{ulp} ulp off"


def readable_steps(steps: Sequence[int]) -> str:
    """Ascending steps in ranges: `steps 3 to 12`, `steps 3 to 5, 9`."""
    if not steps:
        return "no steps"
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and step == ranges[-1][1] + 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    parts = []
    for first, last in ranges:
        if first == last:
            parts.append(str(first))
        else:
            parts.append(f"{first} to {last}")
    return ("step " if len(steps) == 1 else "steps ") + ", ".join(parts)


def readable_trigger(trigger: Trigger) -> str:
    """What triggered, in words: `loss is NaN`, `gradient dense/kernel is inf`."""
    if trigger.what == "exception":
        message = without_node_names(trigger.value)
        return f"{trigger.name}: {message}" if trigger.name else message
    if trigger.what == "manual":
        occasion = "demand" if trigger.name == "dump" else trigger.name
        said = f"on {occasion}"
        return f"written {said}" if trigger.value == said else f"written {said} ({trigger.value})"
    if trigger.name == "loss scale":
        return f"loss scale: {trigger.value}"
    name = trigger.name if trigger.what == "loss" else f"{trigger.what} {trigger.name}"
    return f"{name} is {readable_number(trigger.value)}"


def readable_list(items: Sequence[Any], limit: int = 5) -> str:
    """`3`, `3 and 7`, `3, 7 and 9`, `3, 7, 9, 11, 12 and 4 more`."""
    words = [str(item) for item in items]
    if len(words) > limit + 1:  # "and 1 more" would be no shorter than the item
        return ", ".join(words[:limit]) + f" and {len(words) - limit} more"
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def index_words(index: Sequence[int]) -> str:
    """An index or shape: `[18, 0]`; "" for that of a scalar."""
    return f"[{', '.join(map(str, index))}]" if index else ""
