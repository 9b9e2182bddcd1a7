"""Two runs of a step are held against each other by checksums of what they left."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nanreplay.diagnose.verdict import value_checksum


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16, np.complex64])
def test_any_nan_is_one_and_every_other_bit_counts(kind: Any) -> None:
    values = np.array([1.0, np.nan, -0.0], kind)
    other_nan = np.array([1.0, -np.nan, -0.0], kind)
    assert other_nan.tobytes() != values.tobytes()
    assert value_checksum(other_nan) == value_checksum(values)
    assert value_checksum(np.array([1.0, np.nan, 0.0], kind)) != value_checksum(values)
    assert value_checksum(np.array([np.nan, 1.0, -0.0], kind)) != value_checksum(values)
