"""What each op makes of a NaN and of an infinity in each of its inputs.

The table is `nan_behaviour.txt`: `tests/unit/bisect/nan_kernels.py` wrote it by running every op
eagerly, in a graph and compiled by XLA, on a CPU. An op that gives a finite number where a NaN came
in hides it: what follows is a consequence, although all of its inputs are finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

MODES = ("eager", "graph", "xla")
"""How an op may run; the columns of the table."""
TABLE = files("nanreplay.bisect") / "nan_behaviour.txt"


@cache
def _table() -> Mapping[tuple[str, int, str], Mapping[str, str]]:
    table: dict[tuple[str, int, str], Mapping[str, str]] = {}
    for line in TABLE.read_text().splitlines():
        if line and not line.startswith("#"):
            op_type, position, special, *letters = line.split()
            outcomes = dict(zip(MODES, letters, strict=True))
            table[op_type, int(position), special] = outcomes
    return table


def outcomes(op_type: str, position: int, special: str, mode: str) -> str | None:
    """Return the letters of what an op gives; None for an op that the table does not hold."""
    row = _table().get((op_type, position, special))
    return None if row is None else row[mode]
