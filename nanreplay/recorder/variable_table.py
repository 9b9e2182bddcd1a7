"""The table of variables: an index, a path and a role for each handle that a program captures.

Variables are known by the `id` of their handle (a resource tensor): compiled functions capture
handles, and know nothing of `tf.Variable` or Keras. Names come from models, layers and optimizers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from nanreplay.program.nonfinite_values import has_nonfinite, read_variable, squares_fit
from nanreplay.program.observation import Observation
from nanreplay.records import Role, VariableInfo
from nanreplay.tensorflow_internals import tf_distribution, tf_variables


class VariableTable:
    """Indexes variables by their handles; holds the handles, so that their ids stay theirs."""

    def __init__(self) -> None:
        self.infos: list[VariableInfo] = []
        self.handles: list[Any] = []
        self.index: dict[int, int] = {}
        """Index of a variable by the id of its handle."""
        self.told_open: set[int] = set()
        """Variables without a fixed shape that were told of, by id of their handles."""
        self.born_nonfinite: set[int] = set()
        """Indices of variables that were non-finite before the first step; they are not checked."""
        self._others_nonfinite: set[int] = set()
        """Those of them that are of other models than the one that trains."""
        self._asked_if_born_nonfinite: set[int] = set()
        self.layer_names: set[str] = set()
        """Names of the layers of models that were named."""
        self.optimizer_names: set[str] = set()
        self._named: dict[int, tuple[str, Role]] = {}
        """(path, role) by the id of a handle, of variables that need not be in the table yet."""
        self._named_handles: list[Any] = []

    # Names

    def name(self, variables: Iterable[Any], role: Role | None = None) -> None:
        """Remember paths and roles of variables of Keras or TensorFlow; the first name stays."""
        for variable in variables:
            for replica, component in enumerate(tf_distribution.replica_variables(variable)):
                handle = getattr(component, "handle", None)
                if handle is not None and id(handle) not in self._named:
                    # A variable of TensorFlow has no `path`, and a name such as "dense/kernel:0".
                    path = getattr(variable, "path", None) or variable.name.partition(":")[0]
                    if replica:
                        path = f"{path}/replica_{replica}"
                    self._named[id(handle)] = path, role or _role(variable)
                    self._named_handles.append(handle)

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
        name = getattr(optimizer, "name", None)
        if isinstance(name, str):
            self.optimizer_names.add(name)
        self.name(tf_variables.variables_in(optimizer), "optimizer")
        # Optimizers of Keras 2 do not list the learning rate among their variables.
        rate = getattr(optimizer, "_learning_rate", None)
        if isinstance(rate, tf.Variable):
            self.name([rate], "optimizer")

    def name_used(self, seen: Observation) -> None:
        """Name the variables of the layers and optimizers that a step used."""
        for layer in {id(layer): layer for layer in seen.layers}.values():
            self.name_model(layer)
        for optimizer in seen.optimizers:
            self.name_optimizer(optimizer)

    # Entries

    def add(self, handles: Iterable[Any], named: Iterable[Any] = ()) -> bool:
        """Add handles to the table; returns whether any was new.

        Args:
            handles: Handles; those of no variable are left out.
            named: `tf.Variable`s that some of the handles may belong to.
        """
        self.name(named)
        has_grown = False
        for handle in handles:
            dtype_and_shape = tf_variables.variable_type(handle)
            if id(handle) in self.index or dtype_and_shape is None:
                continue
            dtype, shape = dtype_and_shape
            path, role = self._named.get(id(handle), (f"variable_{len(self.infos)}", "other"))
            self.index[id(handle)] = len(self.infos)
            self.handles.append(handle)
            self.infos.append(VariableInfo(path, shape, tf.dtypes.as_dtype(dtype).name, role))
            has_grown = True
        return has_grown

    def path(self, index: int) -> str:
        """Path of a variable; that of an unknown one (-1) says so."""
        return self.infos[index].path if 0 <= index < len(self.infos) else "unknown variable"

    def of_role(self, role: Role) -> frozenset[int]:
        """Indices of the variables with `role`."""
        return frozenset(index for index, info in enumerate(self.infos) if info.role == role)

    def is_setting(self, index: int) -> bool:
        """Whether a variable is one number of an optimizer, such as its learning rate."""
        info = self.infos[index]
        return info.role == "optimizer" and not info.shape

    @property
    def sizes(self) -> list[int]:
        """Bytes of each value."""
        sizes = []
        for info in self.infos:
            n_elements = tf.TensorShape(info.shape).num_elements() or 0
            sizes.append(int(n_elements) * tf.dtypes.as_dtype(info.dtype).size)
        return sizes

    # Health

    def unchecked(self, *, slots: bool = False) -> list[Any]:
        """Handles whose values say nothing of the training's health: of metrics and seeds.

        Args:
            slots: The slots of optimizers as well, which are checked less often.
        """
        return [handle for handle in self._named_handles if self._is_unchecked(handle, slots)]

    def _is_unchecked(self, handle: Any, slots: bool) -> bool:
        _, role = self._named[id(handle)]
        if role in ("metric", "seed"):
            return True
        if not slots or role != "optimizer":
            return False
        dtype_and_shape = tf_variables.variable_type(handle)
        # A scalar of an optimizer is a setting (learning rate, number of updates), and no slot.
        return dtype_and_shape is not None and bool(dtype_and_shape[1])

    def find_born_nonfinite(self) -> list[str]:
        """Leave out state that starts as an infinity (a running minimum, say): it is meant so.

        Returns:
            The paths of the variables that were found only now.
        """
        paths = []
        for index, info in enumerate(self.infos):
            is_state = info.role in ("state", "optimizer", "other")
            if index in self._asked_if_born_nonfinite or not is_state:
                continue
            self._asked_if_born_nonfinite.add(index)
            if has_nonfinite(read_variable(self.handles[index])):
                self.born_nonfinite.add(index)
                paths.append(info.path)
        return paths

    def forgive(self) -> None:
        """Check no variable that is non-finite now: an earlier training left it so."""
        values = list(map(read_variable, self.handles))
        self.born_nonfinite = {i for i, value in enumerate(values) if has_nonfinite(value)}

    def forgive_others(self, model: Any) -> None:
        """Check no variable that is non-finite now and is not of the model that trains next.

        One recorder may record several models, one after the other. What became of an earlier one
        is no incident of this training.
        """
        own = set()
        for owner in (model, getattr(model, "optimizer", None)):
            for variable in tf_variables.variables_in(owner):
                for component in tf_distribution.replica_variables(variable):
                    own.add(id(getattr(component, "handle", None)))
        self.born_nonfinite -= self._others_nonfinite
        self._others_nonfinite = set()
        for index, handle in enumerate(self.handles):
            is_other = id(handle) not in own and index not in self.born_nonfinite
            if is_other and has_nonfinite(read_variable(handle)):
                self._others_nonfinite.add(index)
        self.born_nonfinite |= self._others_nonfinite

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


def tape_sources(seen: Observation) -> list[Any]:
    """The variables that gradient tapes of a step differentiated with respect to."""
    sources = []
    for call in seen.tape_gradients:
        for source in call.sources:
            if hasattr(source, "handle"):  # a tensor is a source too, and has no variable behind it
                sources.append(source)
    return sources


def _metric_variables(model: Any) -> list[Any]:
    """Variables of a model's metrics; Keras 2 knows them by the metrics alone."""
    metrics = getattr(model, "metrics", None) or ()
    return [variable for metric in metrics for variable in getattr(metric, "variables", ())]


def _role(variable: Any) -> Role:
    """The role of a variable whose owner does not tell it."""
    path = getattr(variable, "path", None) or variable.name
    if "seed_generator_state" in path:  # as Keras names the state of each seed generator
        return "seed"
    dtype = tf.dtypes.as_dtype(variable.dtype)
    is_differentiable = dtype.is_floating or dtype.is_complex  # else it counts something
    is_trained = getattr(variable, "trainable", False) and is_differentiable
    return "trainable" if is_trained else "state"
