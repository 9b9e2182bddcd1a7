"""The table of variables: an index, a path and a role for each handle that a recorded program captures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from nanreplay.program.fingerprint import has_nonfinite, read_variable, squares_fit
from nanreplay.records import Role, VariableInfo
from nanreplay.tensorflow_internals import tf_distribution, tf_variables


class VariableTable:
    """Indexes variables by their handles; holds the handles, so that their ids stay theirs."""

    def __init__(self) -> None:
        self.infos: list[VariableInfo] = []
        self.handles: list[Any] = []
        self.index: dict[int, int] = {}
        self.born_nonfinite: set[int] = set()
        """Indices of variables that were non-finite before the first step of a training; they are not watched."""
        self.layer_names: set[str] = set()
        """Names of the layers of models that were named."""
        self.optimizer_names: set[str] = set()
        self._known: dict[int, tuple[str, Role]] = {}
        self._known_handles: list[Any] = []

    def name(self, variables: Iterable[Any], role: Role | None = None) -> None:
        """Remember paths and roles of Keras variables or `tf.Variable`s; the first name given stays."""
        for variable in variables:
            for replica, component in enumerate(tf_distribution.components(variable)):
                handle = getattr(component, "handle", None)
                if handle is not None and id(handle) not in self._known:
                    path = getattr(variable, "path", None) or variable.name.partition(":")[0]
                    self._known[id(handle)] = (
                        path if replica == 0 else f"{path}/replica_{replica}",
                        role or _role(variable),
                    )
                    self._known_handles.append(handle)

    def name_model(self, model: Any) -> None:
        """Name the variables of a Keras model or layer."""
        self.layer_names.update(layer.name for layer in tf_variables.layers_of(model))
        if callable(getattr(model, "get_metrics_result", None)) or hasattr(model, "metrics"):
            self.name(_metric_variables(model), "metric")
        self.name(tf_variables.variables_in(model, "metrics_variables"), "metric")
        self.name(tf_variables.variables_in(model, "trainable_variables"), "trainable")
        self.name(tf_variables.variables_in(model))

    def name_optimizer(self, optimizer: Any) -> None:
        """Name the slots and settings of an optimizer."""
        if isinstance(name := getattr(optimizer, "name", None), str):
            self.optimizer_names.add(name)
        self.name(tf_variables.variables_in(optimizer), "optimizer")
        rate = getattr(optimizer, "_learning_rate", None)  # of Keras 2, which does not list it
        self.name([rate] if isinstance(rate, tf.Variable) else (), "optimizer")

    def add(self, handles: Iterable[Any], named: Iterable[Any] = ()) -> bool:
        """Add handles to the table; returns whether any was new. `named` are `tf.Variable`s that may belong to them."""
        self.name(named)
        grown = False
        for handle in handles:
            kind = tf_variables.variable_type(handle)
            if id(handle) in self.index or kind is None:
                continue
            path, role = self._known.get(id(handle), (f"variable_{len(self.infos)}", "other"))
            self.index[id(handle)] = len(self.infos)
            self.handles.append(handle)
            self.infos.append(VariableInfo(path, kind[1], tf.dtypes.as_dtype(kind[0]).name, role))
            grown = True
        return grown

    def path(self, index: int) -> str:
        """Path of a variable; that of an unknown one (-1) says so."""
        return self.infos[index].path if 0 <= index < len(self.infos) else "unknown variable"

    def unwatched(self, *, slots: bool = False) -> list[Any]:
        """Named handles whose values say nothing of the training's health (metrics and seeds), and an optimizer's slots."""
        return [handle for handle in self._known_handles if self._is_unwatched(handle, slots)]

    def _is_unwatched(self, handle: Any, slots: bool) -> bool:
        role, kind = self._known[id(handle)][1], tf_variables.variable_type(handle)
        return role in ("metric", "seed") or (
            slots and role == "optimizer" and kind is not None and bool(kind[1])
        )

    def forgive(self) -> None:
        """Watch no variable that is non-finite now: an earlier training left it so, maybe that of another model."""
        values = [read_variable(handle) for handle in self.handles]
        self.born_nonfinite = {index for index, value in enumerate(values) if has_nonfinite(value)}

    def bad_slot(self, state: Mapping[int, Any] | None = None) -> int | None:
        """Index of the first slot of an optimizer that is not finite; None when all are.

        Args:
            state: Values by index to look at; those of now when it is left out.
        """
        for index, info in enumerate(self.infos):
            if info.role != "optimizer" or not info.shape or index in self.born_nonfinite:
                continue
            value = read_variable(self.handles[index]) if state is None else state.get(index)
            if value is not None and not squares_fit(value) and has_nonfinite(value):
                return index
        return None

    def replicas_of(self, index: int) -> list[int]:
        """Indices of a variable and of what mirrors it on other replicas."""
        path = self.infos[index].path
        return [
            other
            for other, info in enumerate(self.infos)
            if other == index or info.path.startswith(f"{path}/replica_")
        ]

    def of_role(self, role: Role) -> frozenset[int]:
        """Indices of the variables with `role`."""
        return frozenset(index for index, info in enumerate(self.infos) if info.role == role)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each value."""
        return [
            int(tf.TensorShape(info.shape).num_elements() or 0)
            * tf.dtypes.as_dtype(info.dtype).size
            for info in self.infos
        ]


def _metric_variables(model: Any) -> list[Any]:
    """Variables of a model's metrics; Keras 2 knows them by the metrics alone."""
    return [
        variable
        for metric in getattr(model, "metrics", None) or ()
        for variable in getattr(metric, "variables", ())
    ]


def _role(variable: Any) -> Role:
    path = getattr(variable, "path", None) or variable.name
    if "seed_generator_state" in path:
        return "seed"
    dtype = tf.dtypes.as_dtype(variable.dtype)
    is_trained = getattr(variable, "trainable", False) and (
        dtype.is_floating or dtype.is_complex
    )  # else it counts
    return "trainable" if is_trained else "state"
