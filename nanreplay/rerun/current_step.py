"""The training step of the user's current code, recorded as it runs.

`Rerun` builds it on a recorded batch, loads recorded state into its variables, and runs it step by
step. The recorder's own classes judge each step, so that an incident here is what it is in a
training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf

from nanreplay.errors import ModelError
from nanreplay.program import observe
from nanreplay.program.nondeterministic_ops import is_nondeterministic
from nanreplay.program.safety import all_nodes
from nanreplay.program.step_programs import program_of
from nanreplay.program.training_functions import TrainingFunction
from nanreplay.recorder.compiled_calls import CompiledCalls
from nanreplay.recorder.eager_step import EagerStep
from nanreplay.recorder.fit_hooks import check_model
from nanreplay.recorder.lifecycle import Suspicion
from nanreplay.recorder.recording import Recording
from nanreplay.recorder.settings import Settings
from nanreplay.recorder.variable_table import VariableTable
from nanreplay.recorder.wrapped_step import WrappedStep, is_compiled_function
from nanreplay.records import ArrayLike, BatchRecord, Compilation, Trigger
from nanreplay.replay.replay_state import as_type
from nanreplay.rerun.model_factory import Arguments, Training, arguments_for, batch_of, raised
from nanreplay.tensorflow_internals import tf_distribution, tf_eager, tf_variables

OnSuspicion = Callable[[Suspicion], None]
_UNLIMITED_BYTES = 2**50
"""A window is as long as the recorded one, which fitted into memory; no limit may cut it."""
_USERS_OWN_OPS = ("PyFunc", "EagerPyFunc", "LookupTable")
"""Python functions and tables: part of the current code, which runs them anew."""


class CurrentStep:
    """The training step of the current code.

    Args:
        training: What the factory made.
        compilation: How the recorded step was compiled; decides where the code leaves that to
            Keras.

    Raises:
        AttachError: The model is not compiled, or no model of Keras 3.
    """

    def __init__(self, training: Training, compilation: Compilation) -> None:
        """Make nothing yet."""
        self.training = training
        self._loop_step = training.step
        if self._is_fit:
            check_model(training.model)
            # Keras chooses by the devices of this machine; the recording may be of another.
            if compilation != "eager" and tf_variables.is_jit_chosen_by_keras(training.model):
                training.model.jit_compile = compilation == "xla"
        self._recording = self._new_recording(Settings(""), 0)
        self._compiled: Any = None
        self.random_ops: tuple[str, ...] = ()
        """Types of ops in the step that give something else in every run.

        These are random draws whose state is no variable.
        """

    @property
    def table(self) -> VariableTable:
        """The variables of the current code; empty before `build`."""
        return self._recording.variables

    @property
    def optimizer(self) -> Any:
        """The optimizer whose learning rate holds, or None."""
        optimizer = self.training.model.optimizer if self._is_fit else self.training.optimizer
        optimizers = tf.nest.flatten(optimizer)
        return optimizers[0] if len(optimizers) == 1 else None

    @property
    def is_eager(self) -> bool:
        """Whether the step runs as plain Python."""
        if self._is_fit:
            return bool(self.training.model.run_eagerly)
        return not is_compiled_function(self._loop_step)

    @property
    def _is_fit(self) -> bool:
        """Whether `model.fit` trains, not a loop of the user's."""
        return self._loop_step is None

    @property
    def _eager_step(self) -> Any:
        return self.training.model.train_step if self._is_fit else self._loop_step

    def arguments(self, batch: BatchRecord) -> Arguments:
        """How the step is called with a recorded batch.

        Raises:
            ReplayError: The batch cannot be rebuilt, or the step takes other arguments.
        """
        data = batch_of(batch.paths, batch.leaves)
        return ((data,), {}) if self._loop_step is None else arguments_for(self._loop_step, data)

    def build(self, batch: BatchRecord) -> None:
        """Make all variables that the step uses; afterwards they are as the code makes them.

        A compiled step is traced. A plain Python step has to run once: the variables' first values
        are put back.

        Raises:
            ModelError: The step does not take the batch.
        """
        args, kwargs = self.arguments(batch)
        if self.is_eager:
            self._run_once(args, kwargs)
            return
        release = observe.install()
        try:
            self._trace(args, kwargs)
        except Exception as error:
            raise self.not_taken(error) from error
        finally:
            release()

    def _trace(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        model = self.training.model
        self._compiled = _train_step_function(model) if self._is_fit else self._loop_step
        function = self._compiled.get_concrete_function(*args, **kwargs)
        flat = tf.nest.flatten((args, kwargs), expand_composites=True)
        tensors = [leaf for leaf in flat if tf.is_tensor(leaf)]
        program = program_of(TrainingFunction(function), function.captured_inputs, tensors)
        if program is None:
            raise ModelError(
                f"{self.training.name}: the step fetches its data by itself; "
                "give one that takes a batch."
            )
        self._recording.add_program(program)
        self._note_random_ops(node.op for _, node in all_nodes(program.graph.as_graph_def()))

    def _run_once(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        recording = self._recording
        error: Exception | None = None
        op_types: set[str] = set()
        remove_callback = tf_eager.add_op_callback(_collector_of_types(op_types))
        try:
            self.runner(recording, lambda suspicion: None)(*args, **kwargs)
        except Exception as raised_by_step:
            # A check of the step's own, perhaps: what it made by then may be all there is.
            error = raised_by_step
        finally:
            remove_callback()
        self._note_random_ops(op_types)
        self._build_optimizers()
        if error is not None:
            is_check = isinstance(error, tf.errors.OpError)
            if not (recording.variables.handles and is_check):
                raise self.not_taken(error) from error
        # The recorder kept the variables as they were before the step: its first keyframe.
        if recording.ring is not None and recording.ring.keyframes:
            keyframes = recording.ring.keyframes
            self.load(keyframes[min(keyframes)])

    def not_taken(self, error: Exception) -> ModelError:
        """Return what to raise where the step fails on a recorded batch."""
        return raised(
            f"{self.training.name}: today's training step does not take the recorded batch", error
        )

    def _note_random_ops(self, op_types: Iterable[str]) -> None:
        random_types = set()
        for op_type in op_types:
            if is_nondeterministic(op_type):
                random_types.add(op_type)
        random_ops = []
        for op_type in sorted(random_types):
            if not op_type.startswith(_USERS_OWN_OPS):
                random_ops.append(op_type)
        self.random_ops = tuple(random_ops)

    def _build_optimizers(self) -> None:
        """Make the slots that a step which was stopped did not come to make."""
        parts = tf.nest.flatten(self.training.model)
        models = []
        for part in parts:
            if hasattr(part, "trainable_variables"):
                models.append(part)
        if len(models) != 1:
            return  # which optimizer is whose is not known
        for optimizer in tf.nest.flatten(self.training.optimizer):
            if hasattr(optimizer, "build") and not getattr(optimizer, "built", True):
                optimizer.build(models[0].trainable_variables)
                self.table.name_optimizer(optimizer)
                self.table.add(map(tf_variables.handle_of, optimizer.variables))

    def load(self, values: Mapping[int, ArrayLike]) -> None:
        """Set variables by their index in `table`; values of another type are cast."""
        for index, value in values.items():
            typed = as_type(value, self.table.infos[index].dtype)
            tf.raw_ops.AssignVariableOp(resource=self.table.handles[index], value=typed)

    def state(self) -> dict[int, Any]:
        """All variables by index."""
        return self._recording.read_state()

    def start_run(self, path: str, first: int, *, steps: int, max_skipped: int) -> CurrentRun:
        """Start a recording of the step.

        Args:
            path: The capture that it can be written to.
            first: Number of the first step.
            steps: How many steps will run.
            max_skipped: Updates that loss scaling may skip in a row.
        """
        settings = Settings(
            path,
            window=steps,
            memory_limit=_UNLIMITED_BYTES,
            history=max(steps, 1),
            max_skipped=max_skipped,
        )
        return CurrentRun(self, self._new_recording(settings, first))

    def runner(self, recording: Recording, on_suspicion: OnSuspicion) -> Callable[..., Any]:
        """Return a function that runs the step and records it."""
        calls = CompiledCalls(recording, on_suspicion)
        step = self._eager_step if self.is_eager else self._compiled
        wrapped = WrappedStep(recording, step, calls, EagerStep(recording, step, on_suspicion))

        def run(*args: Any, **kwargs: Any) -> Any:
            release = observe.install()
            try:
                return wrapped(*args, **kwargs)
            finally:
                release()

        return run

    def _new_recording(self, settings: Settings, first: int) -> Recording:
        recording = Recording(settings, step=first)
        recording.looks.is_always = True
        for model in tf.nest.flatten(self.training.model):
            recording.variables.name_model(model)
        for optimizer in tf.nest.flatten(self.training.optimizer):
            recording.variables.name_optimizer(optimizer)
        return recording


def _train_step_function(model: Any) -> Any:
    """The compiled train step of a Keras model, as Keras makes it, that takes a batch.

    Keras's own train function takes an iterator; its inner function is the same as this one.
    """
    reduced = tf_distribution.replica_reducer(model.distribute_strategy)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def one_step_on_data(data: Any) -> Any:
        return reduced(model.distribute_strategy.run(model.train_step, args=(data,)))

    return tf.function(one_step_on_data, reduce_retracing=True, jit_compile=model.jit_compile)


def _collector_of_types(op_types: set[str]) -> Callable[..., None]:
    """An op callback that collects the types of ops."""

    def callback(
        op_type: Any, inputs: Any, attrs: Any, outputs: Any, op_name: Any = None, graph: Any = None
    ) -> None:
        # TensorFlow gives the type as bytes from its C code, as text from its Python code.
        op_types.add(op_type.decode() if isinstance(op_type, bytes) else op_type)

    return callback


class CurrentRun:
    """The step as it runs, recorded by the recorder's own rule of what is an incident.

    Args:
        step: The step.
        recording: Its recording.
    """

    def __init__(self, step: CurrentStep, recording: Recording) -> None:
        self.recording = recording
        self.trigger: Trigger | None = None
        """What was not finite, or the exception that the step raised; None while all is well."""
        self.failed_step: int | None = None
        """The step at which that was."""
        self.error: Exception | None = None
        """What the step raised, or None."""
        self.fingerprints: dict[int, Mapping[str, Any]] = {}
        """The fingerprint of each step that has run, by name of the element."""
        self._step = step
        self._run = step.runner(recording, self._note)

    def _note(self, suspicion: Suspicion) -> None:
        self.trigger, self.failed_step = suspicion.trigger, suspicion.step

    def ignore(self, indices: Iterable[int]) -> None:
        """Leave variables out of what counts, since they were non-finite before the first step.

        Args:
            indices: Indices in the step's table.
        """
        handles = [self._step.table.handles[index] for index in indices]
        table = self.recording.variables  # this recording has numbered none of them yet
        table.add(handles)
        table.born_nonfinite |= {table.index[id(handle)] for handle in handles}

    def run(self, batch: BatchRecord) -> bool:
        """Run one step; returns whether it was finite.

        Raises:
            ModelError: The step cannot run on this batch, for a reason that has nothing to do with
                its numbers.
        """
        args, kwargs = self._step.arguments(batch)
        try:
            self._run(*args, **kwargs)
        except Exception as error:
            if self.trigger is None:
                raise self._step.not_taken(error) from error
            self.error = error
        recording = self.recording
        suspicion = recording.flush()  # on a GPU steps are looked at late, unless one asks
        if suspicion is not None:
            self._note(suspicion)
        entry = None if recording.ring is None else recording.ring.entry(recording.step - 1)
        if entry is not None and entry.fingerprint is not None:
            self.fingerprints[entry.step] = entry.fingerprint
        if not recording.lifecycle.is_active:
            raise ModelError(
                f"{self._step.training.name}: today's training step could not be recorded."
            )
        return self.trigger is None

    def close(self) -> None:
        """Let go of batches and keyframes; the timeline stays."""
        self.recording.release()

    def write(self) -> str | None:
        """Write what was recorded as a capture; returns its path."""
        trigger, step = self.trigger, self.failed_step
        if trigger is None or step is None:
            trigger = Trigger("manual", "dump", "today's code")
            step = max(0, self.recording.step - 1)
        path, _ = self.recording.write(trigger, step)
        return None if path is None else str(path)
