"""How an outlier is told."""

from __future__ import annotations

import pytest

from nanreplay.diagnose.outliers import Outlier


@pytest.mark.parametrize(("path", "name"), [("", "batch"), ("0/ids", "batch[0/ids]")])
def test_an_array_that_is_the_whole_batch_has_no_path(path: str, name: str) -> None:
    outlier = Outlier(3, path, (2, 1), 577.0, 0.1, 1.0, 2100.0)
    assert outlier.sentence.startswith(f"`{name}` holds 577 in row 2, column 1 of step 3 (")
