"""Every fix by its name.

To add one, write a function of a failure and an optional value that returns a `Fix`, and name it
here, in `fix_names.FIX_KINDS` and, for the causes that it fits, in `edits.FITTING`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nanreplay.whatif.edits import Fix
from nanreplay.whatif.failure import Failure
from nanreplay.whatif.fixes.data_fixes import clean_data, clip_data
from nanreplay.whatif.fixes.masks import finite_mask
from nanreplay.whatif.fixes.model_fixes import float32, init, leaky_relu
from nanreplay.whatif.fixes.operand_fixes import double_where, epsilon
from nanreplay.whatif.fixes.stable_forms import stable_op
from nanreplay.whatif.fixes.update_fixes import clipnorm, clipvalue, global_clipnorm, lr, skip_step

FIXES: Mapping[str, Callable[[Failure, str | None], Fix]] = {
    "lr": lr,
    "clipnorm": clipnorm,
    "clipvalue": clipvalue,
    "global_clipnorm": global_clipnorm,
    "epsilon": epsilon,
    "clip_data": clip_data,
    "clean_data": clean_data,
    "float32": float32,
    "leaky_relu": leaky_relu,
    "init": init,
    "double_where": double_where,
    "stable_op": stable_op,
    "finite_mask": finite_mask,
    "skip_step": skip_step,
}
