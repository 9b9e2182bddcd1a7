"""A training with every loss of Keras, and with the metrics that suit its targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers, losses, metrics

from same_bits_grid.training import (
    CLASSES,
    SAMPLES,
    Attachment,
    Row,
    Trained,
    compiled,
    fitted,
    integers,
    numbers,
    with_and_without_xla,
)

FEATURES = 12
Train = Callable[..., Trained]

LOSSES: dict[str, tuple[Callable[..., Any], str]] = {
    "BinaryCrossentropy": (losses.BinaryCrossentropy, "binary"),
    "BinaryFocalCrossentropy": (losses.BinaryFocalCrossentropy, "binary"),
    "CTC": (losses.CTC, "sequence"),
    "CategoricalCrossentropy": (losses.CategoricalCrossentropy, "one hot"),
    "CategoricalFocalCrossentropy": (losses.CategoricalFocalCrossentropy, "one hot"),
    "CategoricalGeneralizedCrossEntropy": (losses.CategoricalGeneralizedCrossEntropy, "class"),
    "CategoricalHinge": (losses.CategoricalHinge, "one hot"),
    "Circle": (losses.Circle, "unit"),
    "CosineSimilarity": (losses.CosineSimilarity, "number"),
    "Dice": (losses.Dice, "binary"),
    "Hinge": (losses.Hinge, "sign"),
    "Huber": (losses.Huber, "number"),
    "KLDivergence": (losses.KLDivergence, "one hot"),
    "LogCosh": (losses.LogCosh, "number"),
    "MeanAbsoluteError": (losses.MeanAbsoluteError, "number"),
    "MeanAbsolutePercentageError": (losses.MeanAbsolutePercentageError, "number"),
    "MeanSquaredError": (losses.MeanSquaredError, "number"),
    "MeanSquaredLogarithmicError": (losses.MeanSquaredLogarithmicError, "binary"),
    "Poisson": (losses.Poisson, "binary"),
    "SparseCategoricalCrossentropy": (losses.SparseCategoricalCrossentropy, "class"),
    "SquaredHinge": (losses.SquaredHinge, "sign"),
    "Tversky": (losses.Tversky, "binary"),
}
"""Each with the kind of its targets."""

LAST: dict[str, Callable[[], list[Any]]] = {
    "binary": lambda: [layers.Dense(CLASSES, "sigmoid")],
    "one hot": lambda: [layers.Dense(CLASSES, "softmax")],
    "class": lambda: [layers.Dense(CLASSES, "softmax")],
    "sign": lambda: [layers.Dense(CLASSES, "tanh")],
    "number": lambda: [layers.Dense(CLASSES)],
    "unit": lambda: [layers.Dense(CLASSES), layers.UnitNormalization()],
    "sequence": lambda: [layers.RepeatVector(6), layers.SimpleRNN(CLASSES, return_sequences=True)],
}
"""The last layers of a model, by the kind of its targets."""


def targets(kind: str) -> Any:
    """Targets of a kind, one for each sample."""
    labels = integers(CLASSES, SAMPLES, seed=2)
    return {
        "binary": integers(2, SAMPLES, CLASSES, seed=2).astype("float32"),
        "one hot": np.eye(CLASSES, dtype="float32")[labels],
        "class": labels,
        "sign": integers(2, SAMPLES, CLASSES, seed=2).astype("float32") * 2 - 1,
        "number": numbers(SAMPLES, CLASSES, seed=1),
        "unit": labels,
        "sequence": 1 + integers(CLASSES - 1, SAMPLES, 2, seed=2),
    }[kind]


def classifier(kind: str) -> Any:
    """A perceptron whose outputs suit the targets."""
    hidden = layers.Dense(24, "tanh")
    return keras.Sequential([keras.Input((FEATURES,)), hidden, layers.Dropout(0.1), *LAST[kind]()])


def loss_rows() -> Iterator[Row]:
    for name, (make, kind) in LOSSES.items():
        if not hasattr(losses, name):
            continue
        xla = kind != "sequence"  # XLA has no kernel for CTC
        yield from with_and_without_xla("losses", name, trains_loss(make, kind), xla=xla)
        weighted = trains_loss(make, kind, loss_weights=0.2)
        yield from with_and_without_xla("losses", f"{name}, loss_weights", weighted, xla=xla)
        sampled = trains_loss(make, kind, sample_weight=True)
        yield Row("losses", f"{name}, sample weights", lambda a, t=sampled: t(a, jit=False))


def trains_loss(
    make: Callable[..., Any],
    kind: str,
    *,
    sample_weight: bool = False,
    **how: Any,
) -> Callable[..., Trained]:
    def train(attach: Attachment, *, jit: bool) -> Trained:
        model = compiled("sgd", model=classifier(kind), loss=make(), jit=jit, **how)
        more = {"sample_weight": abs(numbers(SAMPLES, seed=3))} if sample_weight else {}
        return fitted(attach, model, numbers(SAMPLES, FEATURES), targets(kind), **more)

    return train


# Metrics

NEED_ARGUMENTS: dict[str, dict[str, Any]] = {
    "BinaryIoU": {"target_class_ids": [0, 1]},
    "FBetaScore": {"beta": 2.0},
    "PrecisionAtRecall": {"recall": 0.5},
    "RecallAtPrecision": {"precision": 0.5},
    "SensitivityAtSpecificity": {"specificity": 0.5},
    "SpecificityAtSensitivity": {"sensitivity": 0.5},
    "OneHotIoU": {"num_classes": CLASSES, "target_class_ids": [0, 1]},
    "OneHotMeanIoU": {"num_classes": CLASSES},
}

METRICS = {
    "binary": """AUC BinaryAccuracy BinaryCrossentropy BinaryIoU F1Score FBetaScore FalseNegatives
        FalsePositives Precision PrecisionAtRecall Recall RecallAtPrecision TrueNegatives
        TruePositives SensitivityAtSpecificity SpecificityAtSensitivity""",
    "one hot": """CategoricalAccuracy CategoricalCrossentropy CategoricalHinge KLDivergence
        TopKCategoricalAccuracy OneHotIoU OneHotMeanIoU""",
    "class": """SparseCategoricalAccuracy SparseCategoricalCrossentropy
        SparseTopKCategoricalAccuracy""",
    "number": """MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredError R2Score
        RootMeanSquaredError CosineSimilarity LogCoshError MeanSquaredLogarithmicError""",
    "sign": "Hinge SquaredHinge Accuracy",
}
"""Metrics of one training, by the kind of its targets."""


def metric_rows() -> Iterator[Row]:
    for kind, names in METRICS.items():
        train = trains_metrics(kind, [name for name in names.split() if hasattr(metrics, name)])
        yield from with_and_without_xla("metrics", f"of targets: {kind}", train)


def trains_metrics(kind: str, names: list[str]) -> Train:
    def train(attach: Attachment, *, jit: bool) -> Trained:
        made = [getattr(metrics, name)(**NEED_ARGUMENTS.get(name, {})) for name in names]
        loss = "sparse_categorical_crossentropy" if kind == "class" else "mse"
        model = compiled(model=classifier(kind), loss=loss, metrics=made, jit=jit)
        x, y = numbers(SAMPLES, FEATURES), targets(kind)
        return fitted(attach, model, x, y, validation_data=(x[:20], y[:20]))

    return train


def unlisted() -> list[str]:
    """Losses of this Keras that no row trains."""
    known = {losses.Loss, *(getattr(losses, name, None) for name in LOSSES)}
    classes = {each for each in vars(losses).values() if isinstance(each, type)}
    return sorted(each.__name__ for each in classes - known if issubclass(each, losses.Loss))
