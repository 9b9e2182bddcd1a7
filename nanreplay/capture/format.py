"""The capture file, format version 1: names of its parts. `docs/capture-format.md` is the specification.

```
/                 attrs: format, version, complete, metadata (JSON)
/program/<id>/    graph (uint8), attrs: signature (JSON); ops (uint8, JSON table, deflated); constants/<i>
/sources/         frames, stacks (uint8, JSON tables, deflated)
/variables        uint8, JSON table
/keyframes/<step>/<variable>      state just before the step
/batches/<step>/<i>               arrays of the batch; attrs: program, paths; fingerprint; overrides/<variable>
/gradients/<step>/<variable>  /weights/<step>/<variable>
/timeline/        one dataset a column; matrices/<name>; attrs: variables
/incident         attrs: incident (JSON)
```
"""

from __future__ import annotations

from typing import Final

FORMAT: Final = "nanreplay-capture"
VERSION: Final = 1

COMPRESS_FROM_BYTES: Final = 4096
"""Smaller datasets are stored contiguous: a chunk index would cost more than deflate saves."""

TIMELINE_COLUMNS: Final = ("step", "loss", "learning_rate", "loss_scale", "step_time_s", "skipped")
TIMELINE_MATRICES: Final = ("gradient_norm", "gradient_absmax", "weight_norm", "update_ratio")

EXTENSION_DTYPES: Final = (
    "bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz", "int4", "uint4",
)  # fmt: skip
"""Types that HDF5 and numpy do not know; stored as unsigned integers of their size with the attribute `dtype`."""
