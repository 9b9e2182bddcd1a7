"""Which fixes are tried for which cause: those that fit it first, then what people try and what the replay may refute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from nanreplay.findings import Cause, CauseKind

_LOWER_RATES = ("lr=0.1", "lr=0.01", "lr=0.001")
_CLIPS = ("clipnorm=1.0", "clipvalue=1.0", "global_clipnorm=1.0")
_USUAL_ADVICE = ("clipnorm=1.0", "lr=0.1")
"""What is advised for any NaN: tried last, so that the report says whether it helps."""
LAST_RESORT = "skip_step"
"""Tried when nothing else helped: it contains a non-finite value rather than prevent it."""
_GROWING = (*_LOWER_RATES, *_CLIPS, "clip_data", "init=glorot", "leaky_relu")

FITTING: Mapping[CauseKind, Sequence[str]] = {
    "data_nan": ("clean_data=nan_to_num", "clean_data=drop_rows"),
    "data_inf": ("clean_data=nan_to_num", "clip_data", "clean_data=drop_rows"),
    "data_outlier": ("clip_data", "clean_data=drop_rows"),
    "log_of_zero": ("epsilon", "stable_op", "double_where", "clean_data=drop_rows"),
    "log_of_negative": ("epsilon", "double_where", "clean_data=drop_rows"),
    "division_by_zero": ("epsilon", "stable_op", "double_where", "clean_data=drop_rows"),
    "zero_over_zero": ("epsilon", "stable_op", "double_where", "clean_data=drop_rows"),
    "exp_overflow": ("stable_op", "clip_data", "clean_data=drop_rows", *_LOWER_RATES[:2]),
    "sqrt_of_negative": ("epsilon", "double_where", "clean_data=drop_rows"),
    "sqrt_grad_at_zero": ("epsilon", "double_where", "clean_data=drop_rows"),
    "norm_grad_at_zero": ("epsilon", "double_where", "clean_data=drop_rows"),
    "pow_domain": ("epsilon", "double_where", "clean_data=drop_rows"),
    "acos_domain": ("epsilon", "double_where", "clean_data=drop_rows"),
    "fp16_overflow": ("float32", "clip_data", "clean_data=drop_rows"),
    "fp16_underflow": ("float32", "epsilon=1e-3", "epsilon"),
    "exploding_gradient": (*_CLIPS, "lr=0.1", "lr=0.01", "clip_data", "leaky_relu", "init=glorot"),
    "high_learning_rate": (*_LOWER_RATES, *_CLIPS),
    "bad_init": ("init=glorot", "init=he", "lr=0.1"),
    "where_gradient": ("double_where", "epsilon", "clean_data=drop_rows"),
    "variance_zero": ("epsilon", "epsilon=1e-5", "double_where", "clean_data=drop_rows"),
    "empty_reduction": ("stable_op", "epsilon", "double_where", "clean_data=drop_rows"),
    "mask_all": ("finite_mask", "clean_data=drop_rows"),
    "loss_scale_stuck": ("float32", "lr=0.1", "clip_data"),
    "label_out_of_range": ("clean_data=drop_rows",),
    "linalg_singular": ("epsilon=1e-6", "epsilon=1e-4", "epsilon=1e-3", "clean_data=drop_rows"),
    "hardware_like": (),
    "other": ("clean_data=drop_rows", "clip_data", *_GROWING),
}
"""Fixes by cause, the one to prefer first."""


def candidates(causes: Sequence[Cause]) -> list[str]:
    """Return the fixes to try for a failure, the most promising first.

    Args:
        causes: Why it failed, the likeliest first.
    """
    return list(dict.fromkeys(_candidates(causes)))


def _candidates(causes: Sequence[Cause]) -> Iterator[str]:
    if not causes or causes[0].kind == "hardware_like":
        return
    for cause in causes:
        yield from FITTING[cause.kind]
    yield from _USUAL_ADVICE
    yield LAST_RESORT
