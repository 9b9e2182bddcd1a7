"""A training with every optimizer of Keras, with its settings, and with schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from keras import optimizers
from keras.optimizers import schedules

from same_bits_grid.training import (
    Attachment,
    Row,
    Trained,
    compiled,
    fitted,
    with_and_without_xla,
)


def two_optimizers() -> Any:
    """One for biases, one for the rest."""
    kinds = optimizers.OptimizerMap(optimizers.Adam(0.01), {".*bias": optimizers.SGD(0.05)})
    return optimizers.MultiOptimizer(kinds)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "Adadelta": lambda **more: optimizers.Adadelta(0.5, **more),
    "Adafactor": lambda **more: optimizers.Adafactor(0.01, **more),
    "Adagrad": lambda **more: optimizers.Adagrad(0.05, **more),
    "Adam": lambda **more: optimizers.Adam(0.01, **more),
    "AdamW": lambda **more: optimizers.AdamW(0.01, **more),
    "Adamax": lambda **more: optimizers.Adamax(0.01, **more),
    "Ftrl": lambda **more: optimizers.Ftrl(0.05, **more),
    "Lamb": lambda **more: optimizers.Lamb(0.01, **more),
    "Lion": lambda **more: optimizers.Lion(0.001, **more),
    "LossScaleOptimizer": lambda: optimizers.LossScaleOptimizer(
        optimizers.Adam(0.01),
        dynamic_growth_steps=4,
    ),
    "MultiOptimizer": lambda: two_optimizers(),
    "Muon": lambda **more: optimizers.Muon(0.01, **more),
    "Nadam": lambda **more: optimizers.Nadam(0.01, **more),
    "RMSprop": lambda **more: optimizers.RMSprop(0.01, **more),
    "SGD": lambda **more: optimizers.SGD(0.05, **more),
    "ScheduleFreeAdamW": lambda **more: optimizers.ScheduleFreeAdamW(0.01, **more),
}

SETTINGS: dict[str, dict[str, Any]] = {
    "Adam with amsgrad": {"make": "Adam", "amsgrad": True},
    "RMSprop centered, with momentum": {"make": "RMSprop", "centered": True, "momentum": 0.9},
    "SGD with momentum": {"make": "SGD", "momentum": 0.9},
    "SGD with Nesterov momentum": {"make": "SGD", "momentum": 0.9, "nesterov": True},
    "Ftrl with l1 and l2": {
        "make": "Ftrl",
        "l1_regularization_strength": 0.01,
        "l2_regularization_strength": 0.01,
    },
}

MODIFIERS: dict[str, dict[str, Any]] = {
    "clipnorm": {"clipnorm": 0.3},
    "clipvalue": {"clipvalue": 0.03},
    "global_clipnorm": {"global_clipnorm": 0.3},
    "weight decay": {"weight_decay": 0.01},
    "EMA": {"use_ema": True, "ema_momentum": 0.9},
    "EMA that overwrites": {"use_ema": True, "ema_overwrite_frequency": 4},
    "accumulation": {"gradient_accumulation_steps": 3},
    "loss scale": {"loss_scale_factor": 1000.0},
}

SCHEDULES: dict[str, Callable[[], Any]] = {
    "CosineDecay": lambda: schedules.CosineDecay(0.05, 12, warmup_target=0.1, warmup_steps=3),
    "CosineDecayRestarts": lambda: schedules.CosineDecayRestarts(0.05, 4),
    "ExponentialDecay": lambda: schedules.ExponentialDecay(0.05, 4, 0.7),
    "InverseTimeDecay": lambda: schedules.InverseTimeDecay(0.05, 4, 0.7),
    "PiecewiseConstantDecay": lambda: schedules.PiecewiseConstantDecay([4, 9], [0.1, 0.05, 0.01]),
    "PolynomialDecay": lambda: schedules.PolynomialDecay(0.05, 12, power=2.0),
}


def optimizer_rows() -> Iterator[Row]:
    made: dict[str, Callable[[], Any]] = {**OPTIMIZERS}
    for name, settings in SETTINGS.items():
        made[name] = lambda s=settings: OPTIMIZERS[s["make"]](**without(s, "make"))
    for base in ("SGD", "Adam"):
        for name, settings in MODIFIERS.items():
            made[f"{base}, {name}"] = lambda b=base, s=settings: OPTIMIZERS[b](**s)
    for name, schedule in SCHEDULES.items():
        made[f"SGD, {name}"] = lambda s=schedule: optimizers.SGD(s())
    for name, make in made.items():
        if hasattr(optimizers, name.partition(" ")[0].strip(",")):
            yield from with_and_without_xla("optimizers", name, trains(make))


def without(given: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != name}


def trains(make: Callable[[], Any]) -> Callable[..., Trained]:
    def train(attach: Attachment, *, jit: bool) -> Trained:
        return fitted(attach, compiled(make(), jit=jit))

    return train


def unlisted() -> list[str]:
    """Optimizers of this Keras that no row trains."""
    known = {optimizers.Optimizer, *(getattr(optimizers, name, None) for name in OPTIMIZERS)}
    classes = {each for each in vars(optimizers).values() if isinstance(each, type)}
    missing = [each for each in classes - known if issubclass(each, optimizers.Optimizer)]
    return sorted(each.__name__ for each in missing)
