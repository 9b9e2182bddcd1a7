"""The capture file, format version 1: names of its parts. `docs/capture-format.md` is the specification.

```
/                 attrs: format, version, complete
/contents  /metadata  /incident  /variables       JSON; contents names every group and dataset
/program/<id>/    graph (uint8), signature (JSON), ops (JSON), constants/<i>
/sources/         frames (JSON), stacks (JSON)
/keyframes/<step>/<variable>              state just before the step
/batches/<step>/<i>                       arrays of the batch; about (JSON); fingerprint; overrides/<variable>; fed/<i>
/gradients/<step>/<variable>  /weights/<step>/<variable>
/timeline/        columns/<name>, matrices/<name>, variables
```

JSON is deflated and stored as uint8: its checksum finds damage, and no HDF5 text of variable length is needed.
"""

from __future__ import annotations

from typing import Final

FORMAT: Final = "nanreplay-capture"
VERSION: Final = 1

COMPRESS_FROM_BYTES: Final = 4096
"""Smaller datasets are stored contiguous: a chunk index would cost more than deflate saves."""

DEFLATE_TO: Final = 0.125
"""Larger ones, of whole numbers, are deflated when a sample shrinks to this share; `benchmarks/dump.py` shows what it costs else."""

SAMPLES: Final = 4
SAMPLE_BYTES: Final = 4096
"""The sample: as many pieces, and their bytes together."""

JSON_LIMIT_BYTES: Final = 2**28
"""A larger table is taken for an attack."""

LARGEST_DEFLATE_RATIO: Final = 1040
"""No dataset unpacks to more than this many times its bytes."""

FILTERS: Final = frozenset({1, 2})
"""HDF5's numbers of deflate and shuffle. A reader unpacks nothing else: a filter may be a plugin, which is code."""

TIMELINE_COLUMNS: Final = ("step", "loss", "learning_rate", "loss_scale", "step_time_s", "skipped", "measured")
TIMELINE_MATRICES: Final = ("gradient_norm", "gradient_absmax", "weight_norm", "update_ratio")

EXTENSION_DTYPES: Final = (
    "bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz", "int4", "uint4",
)  # fmt: skip
"""Types that HDF5 and numpy do not know; stored as unsigned integers of their size with the attribute `dtype`."""

DTYPES: Final = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128 string resource variant "
    "qint8 qint16 qint32 quint8 quint16 int2 uint2 float4_e2m1fn".split()
) | frozenset(EXTENSION_DTYPES)
"""TensorFlow's names of types of variables and inputs."""
