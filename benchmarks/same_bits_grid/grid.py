"""All trainings of the grid."""

from __future__ import annotations

from same_bits_grid.callback_rows import callback_rows
from same_bits_grid.compile_rows import dtype_rows, weight_rows
from same_bits_grid.data_rows import data_rows, eager_rows, execution_rows
from same_bits_grid.end_rows import end_rows
from same_bits_grid.fit_rows import fit_rows
from same_bits_grid.hand_rows import batch_rows, update_rows
from same_bits_grid.layer_rows import layer_rows
from same_bits_grid.loop_rows import loop_rows
from same_bits_grid.loss_rows import loss_rows, metric_rows
from same_bits_grid.optimizer_rows import optimizer_rows
from same_bits_grid.process_rows import process_rows
from same_bits_grid.recurrent_rows import recurrent_rows
from same_bits_grid.step_rows import step_rows
from same_bits_grid.training import Row

PARTS = (
    layer_rows,
    recurrent_rows,
    optimizer_rows,
    loss_rows,
    weight_rows,
    metric_rows,
    dtype_rows,
    update_rows,
    loop_rows,
    batch_rows,
    step_rows,
    data_rows,
    execution_rows,
    eager_rows,
    fit_rows,
    callback_rows,
    end_rows,
    process_rows,
)


def all_rows() -> dict[str, Row]:
    """All trainings, by their titles."""
    rows = [row for part in PARTS for row in part()]
    titled = {row.title: row for row in rows}
    assert len(titled) == len(rows), "two rows have one title"
    return titled
