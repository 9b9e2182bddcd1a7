"""What a tag means, by its words: a loss, a learning rate, a metric, of training or validation."""

from __future__ import annotations

import re

from nanreplay.logs.logged_run import Role

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_VALIDATION = frozenset("val valid validation eval evaluation test dev heldout holdout".split())
_LOSSES = frozenset("loss losses nll elbo cost".split())
_LEARNING_RATES = frozenset(("lr", "learningrate"))
_NO_VALUES = frozenset(
    "time second seconds sec secs s ms duration timestamp memory mem gpu cpu hour hours eta speed "
    "throughput runtime samples examples tokens flos version date wall walltime elapsed".split()
)
_RATES = frozenset("per rate".split())
STEP_NAMES = ("global_step", "step", "_step", "iteration", "iter", "batch", "update", "updates")
EPOCH_NAMES = ("epoch",)
TIME_NAMES = ("timestamp", "_timestamp", "wall_time", "walltime", "time")


def words_of(tag: str) -> list[str]:
    """The words of a tag in lower case: `epoch_valLoss` has epoch, val and loss."""
    return [word.lower() for word in _WORDS.findall(tag)]


def role_of(tag: str) -> Role:
    """The role of a tag; folders in front of the name count, as in `validation/epoch_loss`."""
    words = words_of(tag)
    known = set(words)
    joined = "".join(words)
    if known & _LEARNING_RATES or "learningrate" in joined:
        return "learning_rate"
    if "scale" in known and known & {"loss", "grad", "gradient", "amp"}:
        return "loss_scale"
    is_norm = bool(known & {"norm", "norms", "absmax", "magnitude"})
    if known & {"grad", "grads", "gradient", "gradients"}:
        return "gradient_norm" if is_norm or len(known) <= 2 else "other"
    if is_norm and known & {"weight", "weights", "param", "params", "parameter", "parameters"}:
        return "weights"
    is_validation = bool(known & _VALIDATION)
    if known & _LOSSES:
        return "validation_loss" if is_validation else "loss"
    if known & _NO_VALUES or (known & _RATES and "per" in known):
        return "other"
    return "validation_metric" if is_validation else "metric"


def loss_rank(tag: str) -> tuple[int, int, str]:
    """Sorts losses: the one of the whole model first, then those with few words."""
    words = words_of(tag)
    name = tag.rpartition("/")[2].lower()
    is_whole = name in ("loss", "total_loss", "train_loss", "epoch_loss", "batch_loss")
    return (0 if is_whole else 1, len(words), tag)
