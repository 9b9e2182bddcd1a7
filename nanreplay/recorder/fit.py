"""Recording `model.fit`: a train function of ours takes the place of Keras's own for the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from nanreplay.errors import AttachError
from nanreplay.program import private_distribution
from nanreplay.program.observation import Observation
from nanreplay.program.trace import TracedStep
from nanreplay.recorder.session import Session

_RECORDED = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.OneDeviceStrategy,
)


def check_model(model: Any) -> None:
    """Fail at attach when `model.fit` cannot be recorded.

    Raises:
        AttachError: Another backend, a Keras 2 model, a model that is not compiled, a distribution strategy.
    """
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise AttachError(
            f"nanreplay records Keras on TensorFlow, but the Keras backend is {backend}. "
            "Set KERAS_BACKEND=tensorflow before importing keras."
        )
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        hint = " It comes from Keras 2 (tf_keras); nanreplay needs Keras 3." if "tf_keras" in kind or "keras.src.engine" in kind else ""
        raise AttachError(f"Expected a keras.Model of Keras 3. Received: {kind}.{hint}")
    if not getattr(model, "compiled", False):
        raise AttachError(f"The model {model.name!r} is not compiled. Call model.compile(...) before recording model.fit.")
    check_strategy(model.distribute_strategy)
    if model.distribute_strategy.num_replicas_in_sync > 1 and (model.run_eagerly or model.jit_compile):
        how = "run_eagerly=True" if model.run_eagerly else "jit_compile=True"
        raise AttachError(f"A model on several replicas cannot be recorded with {how}. Compile it without, or train on one device.")


def check_strategy(strategy: Any) -> None:
    """Fail when what a distribution strategy runs cannot be recorded.

    Raises:
        AttachError: It is not one of those whose replicas run the same step in lock-step, each with all variables.
    """
    if not isinstance(strategy, _RECORDED) and type(strategy).__name__ != "_DefaultDistributionStrategy":
        raise AttachError(
            f"nanreplay records MirroredStrategy and MultiWorkerMirroredStrategy; {type(strategy).__name__} is not supported."
        )


class FitFunction:
    """Stands in for `model.train_function`: takes the batches from the iterator itself, and so keeps them.

    Args:
        model: The Keras model.
        original: Keras's own train function.
        run: Runs and records one step on one batch.
        is_expected: Whether the recorder's callback announced this step; a fit without the callback gets `original`.
        ended_by: Told of exceptions, those of the data included.
        expect: Told what batches may look like; a size that Keras's trace leaves open may decide the last bit.
    """

    def __init__(
        self,
        model: Any,
        original: Any,
        run: Callable[[Any], Any],
        is_expected: Callable[[], bool],
        ended_by: Callable[[BaseException], None],
        expect: Callable[[Any], None],
    ) -> None:
        self.model = model
        self.original = original
        self._run = run
        self._is_expected = is_expected
        self._ended_by = ended_by
        self._expect = expect
        self._spec: Any = None
        self._has_optional = True

    def __call__(self, iterator: Any) -> Any:
        """Run `steps_per_execution` steps; returns the logs of the last one."""
        if not self._is_expected():
            self.model.train_function = self.original
            return self.original(iterator)
        try:
            return self._run_steps(iterator)
        except BaseException as error:
            self._ended_by(error)
            raise

    def _run_steps(self, iterator: Any) -> Any:
        logs, spec = None, getattr(iterator, "element_spec", None)
        if spec is not None and spec is not self._spec:
            self._spec, self._has_optional = spec, any(isinstance(leaf, tf.OptionalSpec) for leaf in tf.nest.flatten(spec))
            self._expect(tf.nest.map_structure(_without_optional, spec))
        for _ in range(self.model.steps_per_execution):
            try:
                data = next(iterator)
            except StopIteration:
                if logs is None:
                    raise
                break
            logs = self._run(tf.nest.map_structure(_without_optional, data) if self._has_optional else data)
            if self.model.stop_training:
                break
        return logs


def _without_optional(leaf: Any) -> Any:
    """Keras's data adapters hand None through `tf.data` as an Optional."""
    return None if isinstance(leaf, (tf.experimental.Optional, tf.OptionalSpec)) else leaf


def traced_train_step(model: Any, session: Session) -> tuple[TracedStep, Callable[..., Any]]:
    """The model's train step with the watch inside, and bare."""
    reduced = private_distribution.replica_reducer(model.distribute_strategy)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def one_step_on_data(data: Any) -> Any:
        return reduced(model.distribute_strategy.run(model.train_step, args=(data,)))

    def unwatched(seen: Observation) -> list[Any]:
        session.variables.name_model(model)
        return session.unwatched(seen)

    traced = TracedStep(one_step_on_data, jit_compile=model.jit_compile, unwatched=unwatched)
    return traced, tf.function(one_step_on_data, reduce_retracing=True, jit_compile=model.jit_compile)
