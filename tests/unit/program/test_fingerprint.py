"""What fingerprints tell, those of steps that did not measure everything among them."""

from __future__ import annotations

import numpy as np
import pytest

from nanreplay.program.fingerprint import MAX_ULP, NOT_MEASURED, Layout, NonFinite

LAYOUT = Layout.parse(
    ["loss:0", "gradient_sum:4", "variable_sum:2", "gradient_max:4", "variable_sum:4"]
)
WHOLE = np.array([1.0, 2.0, 3.0, 1.5, 5.0], np.float32)
PART = np.array([1.0, 2.0, 3.0, NOT_MEASURED, NOT_MEASURED], np.float32)


def find(
    values: list[float], bad: dict[int, str] | None = None, *, loss_scaled: bool = False
) -> NonFinite | None:
    return LAYOUT.find_nonfinite(
        np.array(values),
        loss_scaled=loss_scaled,
        bad_variable=lambda index: (bad or {}).get(index, ""),
    )[0]


def test_only_what_both_measured_is_compared() -> None:
    assert LAYOUT.distance(WHOLE, PART) == LAYOUT.distance(PART, WHOLE) == 0
    other = PART.copy()
    other[0] = np.nextafter(other[0], np.float32(2))
    assert LAYOUT.distance(WHOLE, other) == 1
    other[0] = np.nan
    assert LAYOUT.distance(WHOLE, other) == MAX_ULP
    with pytest.raises(ValueError, match="one shape"):
        LAYOUT.distance(WHOLE, PART[:3])


def test_a_loss_of_minus_one_is_a_loss() -> None:
    loss = WHOLE.copy()
    loss[0] = NOT_MEASURED
    assert LAYOUT.measured(loss).all()
    assert LAYOUT.distance(loss, WHOLE) > 0


def test_a_variable_that_was_not_measured_is_looked_at() -> None:
    assert find(PART.tolist(), {4: "inf"}) == NonFinite("variable", 4, "inf")
    assert find(PART.tolist()) is None
    assert find(WHOLE.tolist(), {4: "inf"}) is None  # it was measured, and is finite


def test_a_sum_that_overflows_is_no_infinity_of_the_gradient() -> None:
    inf = float("inf")
    assert find([1.0, inf, 3.0, 1e30, 5.0]) is None
    assert find([1.0, inf, 3.0, inf, 5.0]) == NonFinite("gradient", 4, "inf")
    assert find([1.0, inf, 3.0, inf, 5.0], loss_scaled=True) is None
